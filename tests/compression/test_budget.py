"""Sizes under a budget: the arithmetic of real models, the result of a cut by hand, nothing half-done."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from hf_warmscale import shrink_from_pretrained, shrink_to_budget
from hf_warmscale.architecture import Axis, describe
from hf_warmscale.checkpoints import save_model
from hf_warmscale.compression import RecipeHealing
from hf_warmscale.compression.budget.budget import Ledger, SizeBudget
from hf_warmscale.compression.budget.picture import draw_budget_search
from hf_warmscale.compression.budget.shapes import Shapes
from hf_warmscale.hub import make_card
from hf_warmscale.hub.push import live_receipts
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize.model_source import LiveModel
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer
from tests.resize.families import FAMILIES, random_model

CALIBRATION = torch.randint(0, 258, (2, 32), generator=torch.Generator().manual_seed(1))
GIVEN: dict[str, Any] = {
    "calibration": CALIBRATION,
    "documents": tiny_documents(8),
    "tokenizer": tiny_tokenizer(),
    "n_trials": 6,
    "verify": False,
}


def large() -> LlamaForCausalLM:
    return tiny_llama(
        num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, LlamaForCausalLM, Path]:
    """A model, what a search makes of it, and the journal."""
    model, journal = large(), tmp_path_factory.mktemp("search") / "journal.json"
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    small = shrink_to_budget(model, parameters=34_000, storage=journal, **GIVEN)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert isinstance(small, LlamaForCausalLM)
    return model, small, journal


def mup_model(base_hidden_size: int, base_intermediate_size: int) -> MupForCausalLM:
    torch.manual_seed(0)
    base = {"base_hidden_size": base_hidden_size, "base_intermediate_size": base_intermediate_size}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 300}
    return MupForCausalLM(MupConfig(**sizes, **heads, pad_token_id=0, mup={**base, "base_num_attention_heads": 2}))


def test_a_mup_model_is_never_cut_narrower_than_its_base() -> None:
    model = mup_model(16, 48)
    small = shrink_to_budget(model, parameters=0.6 * model.num_parameters(), **GIVEN)
    assert small.num_parameters() <= 0.6 * model.num_parameters()
    assert small.config.intermediate_size >= 48 and small.config.hidden_size >= 16
    model = mup_model(32, 64)  # only blocks can go, at most half of them
    with pytest.raises(ValueError, match=r"^No shape within .* config accepts; raise the budget"):
        shrink_to_budget(model, parameters=0.4 * model.num_parameters(), **GIVEN)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_a_shape_spends_is_what_the_model_has(family: str, tied: bool) -> None:
    model = random_model(FAMILIES[family](tied), torch.bfloat16)
    source = LiveModel(model)
    described = describe(model.config)
    ledger = Ledger(described, source.specs)
    shapes = Shapes(described, ledger, SizeBudget("parameters", 10**9), range, lambda sizes: True)
    smaller = shapes.smallest
    wanted: dict[str, Any] = {str(axis): size for axis, size in smaller.items() if axis in described.fields}
    small = shrink_from_pretrained(model, **wanted, verify=False)
    stored = {id(weight): weight for weight in small.parameters()}.values()
    layers = range(smaller[Axis.LAYERS])
    assert ledger.spent("parameters", smaller, layers) == sum(weight.numel() for weight in stored)
    assert ledger.spent("memory_bytes", smaller, layers) == sum(weight.nbytes for weight in stored)
    assert ledger.spent("active_parameters", smaller, layers) == describe(small.config).num_active_parameters()


def test_the_result_is_the_cut_to_its_sizes_bit_for_bit(
    searched: tuple[LlamaForCausalLM, LlamaForCausalLM, Path],
) -> None:
    model, small, _ = searched
    found = vars(small)["budget_search"]
    sizes: dict[str, Any] = {name: size for name, size in found["winner"]["sizes"].items() if name != "head_dim"}
    by_hand = shrink_from_pretrained(model, calibration=CALIBRATION, verify=False, **sizes)
    assert all(torch.equal(one, other) for one, other in zip(by_hand.parameters(), small.parameters(), strict=True))
    assert vars(by_hand)["shrink_receipt"] == vars(small)["shrink_receipt"]
    assert small.num_parameters() == found["winner"]["parameters"] <= 34_000


def test_the_record_holds_every_candidate_and_the_best_one_won(
    searched: tuple[LlamaForCausalLM, LlamaForCausalLM, Path], tmp_path: Path
) -> None:
    found = vars(searched[1])["budget_search"]
    rows = found["candidates"]
    assert len(rows) == 6 and all(row["spent"] <= 34_000 for row in rows)
    proposed = [row["spent"] for row in rows if row["how"] == "search"]
    assert proposed and min(proposed) >= 0.95 * 34_000  # nothing is gained by leaving the budget
    assert [row["how"] for row in rows[:3]] == ["depth only", "MLP only", "hidden + MLP"]
    assert found["winner"]["nll"] == min(row["nll"] for row in rows)
    assert {row["how"] for row in found["judged"]} >= {"depth only", "MLP only", "hidden + MLP"}
    assert found["select"]["sha256"] != found["report"]["sha256"]
    json.dumps(found, allow_nan=False)
    draw_budget_search(tmp_path / "search.png", found)
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_a_live_result_is_pushed_with_its_receipts(
    searched: tuple[LlamaForCausalLM, LlamaForCausalLM, Path], tmp_path: Path
) -> None:
    _, small, _ = searched
    receipts = live_receipts(small)
    assert list(receipts) == ["shrink_receipt.json", "budget_search.json"]
    save_model(small, tmp_path / "saved", tokenizer=tiny_tokenizer(), receipts=receipts)
    card = make_card(tmp_path / "saved")
    assert "model-shrinking" in card.data["tags"] and "Shrunk from" in str(card)


def test_a_killed_search_continues_with_the_same_candidates(
    searched: tuple[LlamaForCausalLM, LlamaForCausalLM, Path], tmp_path: Path
) -> None:
    model, small, journal = searched
    content = json.loads(journal.read_text())
    content["candidates"] = content["candidates"][:4]
    half = tmp_path / "journal.json"
    half.write_text(json.dumps(content))
    again = shrink_to_budget(model, parameters=34_000, storage=half, **GIVEN)
    assert vars(again)["budget_search"] == vars(small)["budget_search"]
    assert json.loads(half.read_text()) == json.loads(journal.read_text())
    with pytest.raises(ValueError, match="belongs to a search with another source, budget, text or seed"):
        shrink_to_budget(model, parameters=33_000, storage=half, **GIVEN)


def test_the_winner_is_healed_on_request(searched: tuple[LlamaForCausalLM, LlamaForCausalLM, Path]) -> None:
    model, seen = searched[0], []

    def heal(student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        seen.append(teacher is model)
        with torch.no_grad():
            for weight in student.parameters():
                weight.mul_(0.5)

    small = shrink_to_budget(model, memory_bytes=4 * 34_000, heal=heal, **{**GIVEN, "n_trials": 2})
    assert seen == [True] and not small.training
    healed, winner = vars(small)["budget_search"]["healed"], vars(small)["budget_search"]["winner"]
    gain = healed["report"]["nll"] - winner["report"]["nll"]
    assert gain != 0 and healed["minus_unhealed"]["estimate"] == pytest.approx(gain)


def test_the_winner_is_the_finalist_that_heals_best() -> None:
    """Not the one that lost least when it was cut: this healing harms each finalist less than the one before."""
    teacher, students = large(), []

    def heal(student: PreTrainedModel, source: PreTrainedModel) -> None:
        assert source is teacher
        students.append(student.config)
        with torch.no_grad():
            student.get_output_embeddings().weight.mul_(3000.0 / 10 ** len(students))

    small = shrink_to_budget(teacher, parameters=34_000, heal_briefly=heal, finalists=3, **GIVEN)
    found = vars(small)["budget_search"]
    by_loss = sorted(found["candidates"], key=lambda row: row["nll"])
    blocks = [row["sizes"]["num_hidden_layers"] for row in by_loss]
    assert [config.num_hidden_layers for config in students] == blocks[:3]
    assert ["healed_nll" in row for row in by_loss] == [True] * 3 + [False] * (len(by_loss) - 3)
    assert found["winner"]["sizes"] == by_loss[2]["sizes"]
    assert small.config.intermediate_size == by_loss[2]["sizes"]["intermediate_size"]
    assert {row["healed_nll"] for row in by_loss[:3]} <= {row.get("healed_nll") for row in found["judged"]}


def test_a_finalist_that_diverges_is_left_out() -> None:
    def heal(student: PreTrainedModel, source: PreTrainedModel) -> None:
        healed.append(student)
        with torch.no_grad():
            student.get_output_embeddings().weight.mul_(torch.nan if len(healed) == 1 else 1.0)

    healed: list[PreTrainedModel] = []
    given = {**GIVEN, "n_trials": 3}
    small = shrink_to_budget(large(), parameters=34_000, heal_briefly=heal, finalists=2, **given)
    rows = sorted(vars(small)["budget_search"]["candidates"], key=lambda row: row["nll"])
    assert ["healed_nll" in row for row in rows] == [False, True, False]
    assert vars(small)["budget_search"]["winner"]["sizes"] == rows[1]["sizes"]


def test_healing_by_a_recipe_is_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process; search alone first"):
        RecipeHealing("heal.yaml", "model")


def embedding() -> int:
    return 258 * 32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "There must be one budget, not none"),
        ({"parameters": 1e4, "memory_bytes": 1e5}, "one budget, not parameters and memory_bytes"),
        ({"parameters": 0}, "parameters is 0"),
        ({"parameters": embedding()}, "not above the 8,256 of the embedding alone"),
        ({"memory_bytes": 4 * embedding() - 1}, "of the embedding alone"),
        ({"parameters": 10**6}, "not below the source's"),
        ({"parameters": 34_000, "calibration": None}, "There is no calibration"),
        ({"parameters": 34_000, "calibration": []}, "There is no calibration"),
        ({"parameters": 34_000, "documents": ["one", "two"]}, "2 different documents"),
        ({"parameters": 34_000, "n_trials": 0}, "n_trials is 0"),
        ({"parameters": 34_000, "finalists": 0}, "finalists is 0"),
    ],
)
def test_bad_input_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shrink_to_budget(large(), **{**GIVEN, **settings})
