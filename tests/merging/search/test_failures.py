"""Trials that fail, and storages that cannot be written: the search goes on, now or when it is called again."""

import errno
import json
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.evaluation import NonFiniteLossError
from hf_warmscale.merging import CheckpointWeights, MergeInput, MergeResult, SimplexSpace, search_merge
from hf_warmscale.merging.search.journal import open_journal
from hf_warmscale.merging.search.trials import Trials
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer
from tests.merging.search.test_trials import CONFIGURATION, advance, begin, history, new_trials, outcome

Splits = tuple[list[str], list[str]]
Loss = Callable[[PreTrainedModel], float]


def weight_of_the_later(trajectory: list[Path]) -> Loss:
    """The weight of the later of two checkpoints in a live merge, read off one of its parameters."""
    name = "model.norm.weight"
    first, last = (
        AutoModelForCausalLM.from_pretrained(folder).get_parameter(name).detach() for folder in trajectory[-2:]
    )
    at = int((last - first).abs().argmax())

    def weight(model: PreTrainedModel) -> float:
        return float((model.get_parameter(name).detach()[at] - first[at]) / (last[at] - first[at]))

    return weight


def bowl_with_a_hole(weight: Loss, low: float, high: float) -> Loss:
    """A loss that is NaN for some merges, and best just beside them."""

    def loss(model: PreTrainedModel) -> float:
        at = weight(model)
        return math.nan if low < at < high else 3.0 + (at - 0.7) ** 2

    return loss


def test_a_merge_without_a_finite_loss_fails_and_the_search_goes_on(
    trajectory: list[Path], splits: Splits, tmp_path: Path
) -> None:
    loss = bowl_with_a_hole(weight_of_the_later(trajectory), 0.45, 0.65)
    output = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"Trial 1 \(weights 1: 0.5, 2: 0.5\) failed; the search goes on"):
        result = search_merge(trajectory[-2:], select=loss, confirm=splits[1], n_trials=8, tolerance=0, output=output)
    assert 0.65 <= result.winner["lambda"] <= 0.75
    assert result.study is not None
    failed = result.study.get_trials(states=(TrialState.FAIL,))
    assert failed and all(0.45 < trial.params["lambda"] < 0.65 for trial in failed)
    assert result.num_trials + len(failed) == 8  # the budget counts both
    rows = [json.loads(line) for line in (output / "merge_study.jsonl").read_text().splitlines()]
    reasons = {row.get("failed") for row in rows if row["state"] == "FAIL"}
    assert reasons == {"The objective 'held-out' returned nan; it must return finite losses."}


def test_a_failed_point_is_not_the_first_of_every_restart(
    trajectory: list[Path], splits: Splits, tmp_path: Path
) -> None:
    """Each call has time for one more trial; none of them is spent on a point that is known to fail."""
    loss = bowl_with_a_hole(weight_of_the_later(trajectory), 0.45, 0.55)
    results: list[MergeResult] = []
    for count in range(1, 7):
        with pytest.warns(UserWarning, match="failed") if count == 2 else nullcontext():
            results.append(
                search_merge(
                    trajectory[-2:],
                    select=loss,
                    confirm=splits[1],
                    n_trials=count,
                    tolerance=0,
                    storage=tmp_path / "journal.log",
                )
            )
    assert results[-1].study is not None
    assert sum(trial.state == TrialState.FAIL for trial in results[-1].study.trials) == 1
    assert results[-1].num_trials == 5


def test_a_search_without_any_finite_loss_says_so(trajectory: list[Path], splits: Splits, tmp_path: Path) -> None:
    calls = 0

    def loss(model: PreTrainedModel) -> float:
        nonlocal calls
        calls += 1
        return math.inf

    with (
        warnings.catch_warnings(record=True) as warned,
        pytest.raises(NonFiniteLossError, match="No merge has a finite loss: The objective 'held-out' returned inf"),
    ):
        search_merge(trajectory[-2:], select=loss, confirm=splits[1], n_trials=20, output=tmp_path / "out")
    assert not [each for each in warned if "Trial" in str(each.message)]  # the error says it all
    assert calls < 15  # it does not spend the whole budget on finding out
    assert not list(tmp_path.iterdir())


def test_a_reference_that_diverged_on_the_confirm_split_is_null(
    trajectory: list[Path], splits: Splits, tmp_path: Path
) -> None:
    """The uniform average has no loss there; the winner and the best checkpoint are judged all the same."""
    weight = weight_of_the_later(trajectory)
    noise = np.random.default_rng(0).normal(0.0, 1e-3, size=40)

    def confirm(model: PreTrainedModel) -> list[float]:
        at = weight(model)
        return [math.nan if abs(at - 0.5) < 1e-3 else 3.0 + (at - 0.7) ** 2 + at * each for each in noise]

    output = tmp_path / "out"
    result = search_merge(
        trajectory[-2:], select=bowl_with_a_hole(weight, 2.0, 2.0), confirm=confirm, n_trials=7, output=output
    )
    assert result.accepted and result.verdict.endswith("the uniform average has no finite loss.")
    record = json.loads((output / "merge_result.json").read_text())
    assert record["interval_uniform"]["estimate"] is None and record["domains"][0]["uniform"] is None
    assert MergeResult.from_dict(record).interval_uniform.estimate == -math.inf


def test_the_sampler_keeps_away_from_failed_points() -> None:
    """The half of the box that it likes fails. If it did not know, it would try the neighbours of each failure."""
    trials = new_trials()
    advance(trials, 2)
    for _ in range(10):
        trial = begin(trials)
        weight = trial.params["lambda"]
        if weight < 0.5:
            trials.fail(trial, "NaN")
        else:
            trials.tell(trial, outcome(3.0 + 0.1 * weight))
    points = sorted(trial.params["lambda"] for trial in (*trials.finished(), *trials.failed()))
    assert len(points) == 12 and trials.failed()
    assert np.diff(points).min() > 0.03


class Members:
    """Three models behind one, as `search_merge` asks for them: combining them sets three numbers and no more."""

    kind = "member"
    span: tuple[int | None, int | None] = (None, None)

    def __init__(self) -> None:
        self.model: PreTrainedModel = tiny_llama()
        self.weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return 3

    def combine(self, weights: CheckpointWeights) -> None:
        assert isinstance(weights, tuple)
        self.weights = weights

    def check(self) -> list[MergeInput]:
        return [MergeInput(f"org/{name}", None, None, name) for name in "abc"]

    def base(self) -> None: ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tiny_tokenizer()

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        (folder / "weights.json").write_text(json.dumps(weights))


def test_members_that_fail_are_left_out_of_the_greedy_soup(tmp_path: Path) -> None:
    """Of three members the first has no finite loss, alone or in a mean; the others are best in equal parts."""
    members = Members()

    def losses(model: PreTrainedModel) -> list[float]:
        a, b, c = members.weights
        return [math.nan if a > 0.2 else 3.0 + (b - c) ** 2 + 0.1 * a + 0.001 * index for index in range(20)]

    with pytest.warns(UserWarning, match="failed; the search goes on"):
        result = search_merge(
            members,
            space=SimplexSpace(3),
            select=losses,
            confirm=losses,
            n_trials=8,
            tolerance=0,
            output=tmp_path / "out",
        )
    assert result.study is not None
    initial = [trial.user_attrs["start"] for trial in result.study.trials if "start" in trial.user_attrs]
    assert initial == ["2", "0+1+2", "1", "0", "1+2"]  # the soup of the best two, and none with the first
    assert result.accepted and "member" in result.verdict
    assert json.loads((tmp_path / "out" / "weights.json").read_text()) == list(result.weights)


def full_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes `count` more entries of a journal."""
    append, left = JournalFileBackend.append_logs, count

    def append_or_fail(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        left -= len(logs)
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_or_fail)


@pytest.mark.parametrize("entries", [6, 7, 8, 10, 12])
def test_after_a_full_disk_the_same_process_goes_on(
    entries: int, trajectory: list[Path], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook whose user makes room and calls again: nothing is waited for, and no point is another."""
    loss = bowl_with_a_hole(weight_of_the_later(trajectory), 2.0, 2.0)

    def search(name: str) -> list[tuple[float, float]]:
        result = search_merge(
            trajectory[-2:], select=loss, confirm=splits[1], n_trials=4, tolerance=0, storage=tmp_path / name
        )
        assert result.study is not None
        done = result.study.get_trials(states=(TrialState.COMPLETE,))
        return [(trial.params["lambda"], trial.values[0]) for trial in done]

    whole = search("whole.log")
    with monkeypatch.context() as full:
        full_after(entries, full)
        with pytest.raises(OSError, match="No space left"):
            search("full.log")
    assert search("full.log") == whole


def test_a_trial_that_its_process_has_left_behind_is_tried_again() -> None:
    """Its worker is this very process, which is alive but no longer scores it."""
    storage = InMemoryStorage()
    trials = new_trials(storage)
    advance(trials, 3)
    left = begin(trials)
    left.set_user_attr("token", "of an earlier search")
    other = new_trials(storage)
    other.sweep()
    assert not other.running()
    assert begin(other).params == left.params


class TestJournalOf010:
    """A study that version 0.1.0 began is continued; one of a newer version is refused."""

    def test_it_is_continued(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.log"
        journal.write_bytes((Path(__file__).parents[1] / "format_0_1_0" / "journal.log").read_bytes())
        trials = new_trials(open_journal(journal))
        expected = [(1.0, 3.01444), (0.0, 3.03844), (0.7849224518622465, 3.0027199415128254)]
        assert history(trials) == expected
        (running,) = trials.running()
        whole = new_trials()
        advance(whole, 3)
        assert begin(whole).params["lambda"] == pytest.approx(running.params["lambda"])  # the same proposals as ever

    def test_a_newer_one_is_refused(self) -> None:
        storage = InMemoryStorage()
        trials = new_trials(storage)
        trials.study.set_user_attr("format_version", 2)
        with pytest.raises(ValueError, match="The study 'merge' has the format version 2"):
            Trials(storage, "merge", trials._space, num_objectives=1, seed=0, configuration=CONFIGURATION)
