"""The whole search, on checkpoints around a model that was really trained."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_warmscale.checkpoints import open_checkpoint, save_model
from hf_warmscale.evaluation import document_nll
from hf_warmscale.merging import PairSpace, SimplexSpace, search_merge
from hf_warmscale.merging.methods import linear
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

Splits = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def output(trajectory: list[Path], splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of one search."""
    output = tmp_path_factory.mktemp("search") / "merged"
    search_merge(trajectory[-2:], select=splits[0], confirm=splits[1], n_trials=8, output=output)
    return output


class TestPair:
    """One search with everything it leaves behind."""

    def record(self, output: Path) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((output / "merge_result.json").read_text())
        return record

    def test_the_merge_is_better_and_says_so(self, output: Path) -> None:
        record = self.record(output)
        assert record["accepted"] is True
        assert str(record["verdict"]).startswith("Merge: better than checkpoint 2 of 2 (-0.")

    def test_the_folder_is_a_stock_model_with_the_merged_weights(self, output: Path, trajectory: list[Path]) -> None:
        weights = self.record(output)["weights"]
        assert isinstance(weights, list) and sum(weights) == pytest.approx(1.0)
        for name, tensor in open_checkpoint(output).tensors():
            parts = [open_checkpoint(folder).tensor(name) for folder in trajectory[-2:]]
            assert torch.equal(tensor, linear(parts, weights))
        assert AutoTokenizer.from_pretrained(output)("abc").input_ids == tiny_tokenizer()("abc").input_ids

    def test_the_recorded_loss_is_that_of_the_folder(self, output: Path, splits: Splits) -> None:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
        (row,) = self.record(output)["domains"]
        assert document_nll(model, splits[1], tokenizer).mean == pytest.approx(row["after"], abs=1e-5)
        assert row["interval"][0] < row["difference"] < row["interval"][1] < 0

    def test_the_trials_are_on_record(self, output: Path) -> None:
        rows = [json.loads(line) for line in (output / "merge_study.jsonl").read_text().splitlines()]
        assert [row["start"] for row in rows[:2]] == ["1", "0+1"]
        assert len(rows) == self.record(output)["num_trials"] <= 8
        storage = JournalStorage(JournalFileBackend(str(output / "merge_journal.log")))
        assert len(optuna.load_study(study_name="merge", storage=storage).trials) == len(rows)

    def test_the_pictures_are_there(self, output: Path) -> None:
        assert {path.name for path in output.glob("*.png")} == {"history.png", "slices.png", "landscape.png"}

    def test_nothing_else_is_left(self, output: Path) -> None:
        assert [path.name for path in output.parent.iterdir()] == ["merged"]


def test_equal_checkpoints_are_not_merged(trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        model = AutoModelForCausalLM.from_pretrained(trajectory[-1])
        save_model(model, tmp_path / name, tokenizer=tiny_tokenizer())
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    output = tmp_path / "out"
    result = search_merge(folders, select=splits[0], confirm=splits[1], n_trials=3, output=output)
    assert not result.accepted and result.verdict.startswith("No merge")
    assert result.weights in [(0.0, 1.0), (1.0, 0.0)]
    assert open_checkpoint(output).content_hash() == open_checkpoint(folders[0]).content_hash()


@pytest.mark.parametrize(
    ("space", "starts"), [("simplex", ["2", "0+1+2", "1", "0", "1+2"]), ("trajectory", ["2", "0+1+2", "1+2"])]
)
def test_more_checkpoints(space: str, starts: list[str], trajectory: list[Path], splits: Splits) -> None:
    select, confirm = splits
    result = search_merge(trajectory[-3:], select=select, confirm=confirm, space=space, n_trials=6)  # type: ignore[arg-type]
    assert result.study is not None
    assert [trial.user_attrs["start"] for trial in result.study.trials if "start" in trial.user_attrs] == starts
    assert result.num_trials == 6 and result.accepted
    assert result.interval.high < 0
    assert result.best_single == 2


def test_distant_checkpoints_are_warned_of_before_the_search(
    trajectory: list[Path], splits: Splits, tmp_path: Path
) -> None:
    """The signs of all weights turned: what lies between the two is noise, and no trial has to be spent to see it."""
    model = AutoModelForCausalLM.from_pretrained(trajectory[-2])
    for parameter in model.parameters():
        parameter.data.neg_()
    save_model(model, tmp_path / "checkpoint-1", tokenizer=tiny_tokenizer())
    select, confirm = splits
    with pytest.warns(UserWarning, match="separated by a barrier of .* nats: leave the early checkpoints out"):
        search_merge([tmp_path / "checkpoint-1", trajectory[-1]], select=select, confirm=confirm, n_trials=1)


def test_groups(trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
    """What is written is what was scored, parameter by parameter."""
    select, confirm = splits
    output = tmp_path / "out"
    result = search_merge(trajectory[-2:], select=select, confirm=confirm, space="groups", n_trials=5, output=output)
    assert result.num_trials == 5
    if result.accepted:
        assert isinstance(result.weights, dict)
        name = "model.layers.0.mlp.up_proj.weight"
        parts = [open_checkpoint(folder).tensor(name) for folder in trajectory[-2:]]
        assert torch.equal(open_checkpoint(output).tensor(name), linear(parts, result.weights[name]))
    scores = document_nll(AutoModelForCausalLM.from_pretrained(output), confirm, tiny_tokenizer())
    assert scores.mean == pytest.approx(result.domains[0]["after" if result.accepted else "before"], abs=1e-5)


def test_several_objectives_have_a_front(trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
    select = {"one": splits[0][:25], "two": splits[0][25:]}
    confirm = {"one": splits[1][:25], "two": splits[1][25:]}
    result = search_merge(trajectory[-2:], select=select, confirm=confirm, n_trials=6, output=tmp_path / "out")
    assert result.front and all(row["values"].keys() == {"one", "two"} for row in result.front)
    for a in result.front:
        assert not any(
            all(b["values"][name] <= a["values"][name] for name in a["values"]) and b["values"] != a["values"]
            for b in result.front
        )
    assert [row["domain"] for row in result.domains] == ["one", "two"]
    assert (tmp_path / "out" / "front.png").is_file()


def test_a_limit_keeps_a_domain(trajectory: list[Path], splits: Splits) -> None:
    """Averaging would gain, but it would also turn this function of the weights up: what is chosen keeps the limit."""
    last = AutoModelForCausalLM.from_pretrained(trajectory[-1]).model.norm.weight.detach()

    def moved(model: PreTrainedModel) -> list[float]:
        return [float((model.get_parameter("model.norm.weight").detach() - last).abs().max())] * 2

    result = search_merge(
        trajectory[-2:],
        select={"text": splits[0], "moved": moved},
        confirm={"text": splits[1], "moved": moved},
        limits={"moved": 1e-6},
        n_trials=5,
    )
    assert not result.accepted and result.winner["lambda"] > 0.999
    assert result.study is not None
    assert any(trial.user_attrs["violations"]["moved"] > 0 for trial in result.study.trials)


def test_any_function_of_the_model(trajectory: list[Path], splits: Splits) -> None:
    """The loss of a function of the weights is found: the norm of the merge closest to a given one."""
    first, last = (AutoModelForCausalLM.from_pretrained(folder).model.norm.weight for folder in trajectory[-2:])
    target = (0.2 * first + 0.8 * last).detach()

    def distance(model: PreTrainedModel) -> float:
        return float((model.get_parameter("model.norm.weight").detach() - target).abs().mean())

    result = search_merge(trajectory[-2:], select=distance, confirm=splits[1], n_trials=9, seed=1)
    assert result.winner["lambda"] == pytest.approx(0.8, abs=0.0625)  # nearer than a grid of nine trials is sure to be


def test_an_interrupted_search_goes_on_in_the_same_process(
    trajectory: list[Path], splits: Splits, tmp_path: Path
) -> None:
    """As in a notebook, whose process lives on after Ctrl-C: the trial is not waited for, and nothing is another."""
    calls = interrupted_at = 0

    def loss(model: PreTrainedModel) -> float:
        nonlocal calls
        calls += 1
        if calls == interrupted_at:
            raise KeyboardInterrupt
        return float(model.get_parameter("model.norm.weight").detach().square().mean() - 1.0) ** 2

    def search(storage: Path | None) -> list[tuple[dict[str, float], list[float]]]:
        result = search_merge(
            trajectory[-2:], select=loss, confirm=splits[1], n_trials=6, tolerance=0, storage=storage
        )
        assert result.study is not None
        trials = result.study.get_trials(states=(TrialState.COMPLETE,))
        return [(trial.params, trial.values) for trial in trials]

    whole = search(None)
    calls, interrupted_at = 0, calls - 2
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "journal.log")
    assert search(tmp_path / "journal.log") == whole


def test_an_instance_of_a_space(trajectory: list[Path], splits: Splits) -> None:
    space = PairSpace(alpha=0.8, beyond=1.2)
    result = search_merge(trajectory[-2:], select=splits[0], confirm=splits[1], space=space, n_trials=4)
    assert 0.8 <= result.winner["lambda"] <= 1.2


class TestRefusals:
    """One sentence, and nothing at the output."""

    def refused(self, message: str, output: Path, checkpoints: list[Path], **settings: object) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            search_merge(checkpoints, output=output, **settings)  # type: ignore[arg-type]
        assert not output.exists()

    def test_documents_in_both_splits(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        select, confirm = splits[0], [*splits[1], splits[0][3]]
        self.refused(
            "1 documents are in select and in", tmp_path / "o", trajectory[-2:], select=select, confirm=confirm
        )

    def test_an_empty_document(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        self.refused("Document 1 is empty", tmp_path / "o", trajectory[-2:], select=["a", ""], confirm=splits[1])

    def test_an_objective_that_gives_nan(self, trajectory: list[Path], tmp_path: Path) -> None:
        losses = {"select": lambda model: float("nan"), "confirm": lambda model: [1.0, 2.0]}
        self.refused(r"The objective 'held-out' returned nan", tmp_path / "o", trajectory[-2:], **losses)
        assert not list(tmp_path.iterdir())

    def test_a_limited_domain_that_gives_nan(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        """It is scored once before the first trial."""
        domains = {
            split: {"text": texts, "broken": lambda model: [float("nan")] * 2}
            for split, texts in zip(("select", "confirm"), splits, strict=True)
        }
        self.refused("'broken' returned", tmp_path / "o", trajectory[-2:], limits={"broken": 0.1}, **domains)
        assert not list(tmp_path.iterdir())

    def test_one_checkpoint(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        self.refused("at least two", tmp_path / "o", trajectory[:1], select=splits[0], confirm=splits[1])

    def test_three_in_a_pair(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        self.refused(
            "merges two checkpoints, not 3", tmp_path / "o", trajectory[:3], select=splits[0], confirm=splits[1]
        )

    def test_the_wrong_order(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        folders = [trajectory[1], trajectory[0]]
        self.refused("from the oldest to the latest", tmp_path / "o", folders, select=splits[0], confirm=splits[1])

    def test_nan_in_a_checkpoint(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(trajectory[0])
        model.model.norm.weight.data[3] = torch.nan
        save_model(model, tmp_path / "checkpoint-1", tokenizer=tiny_tokenizer())
        folders = [tmp_path / "checkpoint-1", trajectory[1]]
        self.refused(
            "norm.weight of .*checkpoint-1 holds NaN", tmp_path / "o", folders, select=splits[0], confirm=splits[1]
        )

    def test_an_objective_of_nan(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        nan = {"select": lambda model: float("nan"), "confirm": splits[1]}
        self.refused("returned nan; it must return finite losses", tmp_path / "o", trajectory[-2:], **nan)

    def test_a_study_of_another_search(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        select, confirm = splits
        storage = tmp_path / "journal.log"
        search_merge(trajectory[-2:], select=select, confirm=confirm, n_trials=1, storage=storage)
        same = {"confirm": confirm, "storage": storage, "n_trials": 1}
        self.refused("made with another select", tmp_path / "o", trajectory[-2:], select=select[1:], **same)
        self.refused("made with another checkpoints", tmp_path / "o", trajectory[:2], select=select, **same)
        self.refused(
            "made with another max_length", tmp_path / "o", trajectory[-2:], select=select, max_length=7, **same
        )
        self.refused(
            "made with another space", tmp_path / "o", trajectory[-2:], select=select, space="simplex", **same
        )

    def test_a_study_of_another_objective(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        """Functions are told apart by their whole names."""

        def loss_of_one(model: PreTrainedModel) -> float:
            return 1.0

        def loss_of_another(model: PreTrainedModel) -> float:
            return 2.0

        same = {"confirm": splits[1], "storage": tmp_path / "journal.log", "n_trials": 1}
        search_merge(trajectory[-2:], select=loss_of_one, **same)  # type: ignore[arg-type]
        self.refused("made with another select", tmp_path / "o", trajectory[-2:], select=loss_of_another, **same)

    def test_a_public_benchmark(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        domains = {"select": {"gsm8k": splits[0]}, "confirm": {"gsm8k": splits[1]}}
        self.refused("public benchmark gsm8k", tmp_path / "o", trajectory[-2:], **domains)
        result = search_merge(trajectory[-2:], n_trials=1, allow_public_benchmarks=True, **domains)  # type: ignore[arg-type]
        assert result.num_trials == 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"n_trials": 0}, "n_trials is 0"),
            ({"tolerance": float("nan")}, "tolerance is nan"),
            ({"confidence": 95}, "confidence is 95; it must lie between 0 and 1"),
            (
                {"confirm": ["one", "one"]},
                "confirm has 1 different document in 'held-out'; an interval needs at least 2",
            ),
            ({"storage": "nosql:///x"}, "The nosql storage cannot be opened"),
            ({"space": "line"}, "'line' is unknown; choose one of pair"),
            ({"space": SimplexSpace(3)}, r"SimplexSpace\(count=3\) gives 3 weights for 2 checkpoints; make it for 2"),
            ({"space": PairSpace(alpha=0.9, beyond=0.5)}, "goes from 0.9 to 0.5; the second must be the larger"),
            ({"limits": {"old": 0.1}}, "limit for 'old', which is not one of the domains"),
            ({"limits": {"held-out": 0.1}}, "none is left to improve"),
            ({"limits": {"held-out": -1.0}}, "The limit of 'held-out' is -1.0"),
        ],
    )
    def test_settings(
        self, settings: dict[str, object], message: str, trajectory: list[Path], splits: Splits, tmp_path: Path
    ) -> None:
        both: dict[str, object] = {"select": splits[0], "confirm": splits[1]}
        self.refused(message, tmp_path / "o", trajectory[-2:], **(both | settings))

    def test_other_domains_to_confirm(self, trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
        domains = {"select": {"a": splits[0]}, "confirm": {"b": splits[1]}}
        self.refused(r"select has the domains \['a'\] and confirm \['b'\]", tmp_path / "o", trajectory[-2:], **domains)

    def test_a_folder_that_cannot_be_written_to(self, trajectory: list[Path], splits: Splits) -> None:
        both = {"select": splits[0], "confirm": splits[1]}
        self.refused("The folder /proc/.* cannot be written to", Path("/proc/self/out"), trajectory[-2:], **both)

    def test_no_tokenizer(self, splits: Splits, tmp_path: Path) -> None:
        for step in (1, 2):
            save_model(tiny_llama(seed=step), tmp_path / f"checkpoint-{step}")
        folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
        self.refused(
            "holds no tokenizer that transformers can load",
            tmp_path / "o",
            folders,
            select=splits[0],
            confirm=splits[1],
        )
