"""A grown model with a grown optimizer state takes the small model's steps: losses to 1e-8 over 50 steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.mup import MupConfig, MupForCausalLM, TrainingFactors, mup_param_groups
from hf_warmscale.resize import grow_checkpoint, grow_optimizer_state
from tests.conftest import perturb
from tests.resize.families import FAMILIES, GROUPED, VOCAB, random_model

LR, DECAY, EPS = 3e-3, 0.1, 1e-6
STEPS_BEFORE, STEPS = 10, 50
Groups = Callable[[PreTrainedModel], list[dict[str, Any]]]

WIDER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
GROWTHS: dict[str, dict[str, Any]] = {
    "all widths": {**WIDER, "num_key_value_heads": 4},
    "key heads fixed": WIDER,
    "three-fold, hidden size alone": {"hidden_size": 96},
    "neurons alone": {"intermediate_size": 96},
}


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, first: int, steps: int) -> list[float]:
    """Return the losses of steps `first` to `first + steps` on data that only depends on the step."""
    losses = []
    model.train()
    for step in range(first, first + steps):
        tokens = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(step))
        with StayInFloat64():
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # torch's Muon orthogonalises in bfloat16, whose rounding depends on the shape
        losses.append(float(loss.detach()))
    return losses


def trainer_groups(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The two groups of an unmodified Trainer."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # it uses no self
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": DECAY},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def trained(model: PreTrainedModel, groups: list[dict[str, Any]], folder: Path) -> torch.optim.Optimizer:
    """Train a few steps and save as Trainer does."""
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS)
    train(model, optimizer, 0, STEPS_BEFORE)
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return optimizer


def grown_optimizer(
    grown: PreTrainedModel, folder: Path, factors: TrainingFactors | None, base: dict[str, Any]
) -> torch.optim.Optimizer:
    """What the muP factory makes, with the state that Trainer loads."""
    groups = mup_param_groups(grown, lr=LR, weight_decay=DECAY, eps=EPS, factors=factors, **base)
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return optimizer


def grow_both(source: Path, grown: Path, **request: Any) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    moments = request.pop("moments", "scale")
    grow_checkpoint(source, grown, **request)
    factors = grow_optimizer_state(source, grown, moments=moments)
    model = AutoModelForCausalLM.from_pretrained(grown, dtype=torch.float64)
    return model, grown_optimizer(model, grown, factors, {})


CASES = [
    ("llama", True, list(GROWTHS)),
    ("llama", False, ["all widths"]),
    ("qwen3", True, ["key heads fixed"]),
    ("gemma2", True, ["all widths"]),
]


@pytest.mark.parametrize("family, tied, growths", CASES)
def test_a_clone_takes_the_steps_of_its_source(family: str, tied: bool, growths: list[str], tmp_path: Path) -> None:
    source = random_model(FAMILIES[family](tied))
    optimizer = trained(source, trainer_groups(source), tmp_path / "source")
    expected = train(source, optimizer, STEPS_BEFORE, STEPS)
    for name in growths:
        grown, moved = grow_both(tmp_path / "source", tmp_path / name, snr_db=None, **GROWTHS[name])
        losses = train(grown, moved, STEPS_BEFORE, STEPS)
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-8, name


def test_noise_parts_the_copies(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True))
    optimizer = trained(source, trainer_groups(source), tmp_path / "source")
    expected = train(source, optimizer, STEPS_BEFORE, STEPS)
    grown, moved = grow_both(tmp_path / "source", tmp_path / "grown", snr_db=10.0, **GROWTHS["all widths"])
    losses = train(grown, moved, STEPS_BEFORE, STEPS)
    assert abs(losses[0] - expected[0]) <= 1e-11
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) > 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_mup_groups_are_the_matching_ones(tied: bool, tmp_path: Path) -> None:
    """A muP model needs no factors: its own groups at the larger shape are those of growth."""
    config = MupConfig(**GROUPED, tie_word_embeddings=tied, mup={"base_hidden_size": 16})
    source = MupForCausalLM(config).double()
    perturb(source)
    groups = mup_param_groups(source, lr=LR, weight_decay=DECAY, eps=EPS)
    optimizer = trained(source, groups, tmp_path / "source")
    expected = train(source, optimizer, STEPS_BEFORE, STEPS)
    grow_checkpoint(tmp_path / "source", tmp_path / "grown", snr_db=None, **GROWTHS["all widths"])
    assert grow_optimizer_state(tmp_path / "source", tmp_path / "grown") is None
    grown = MupForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float64)
    losses = train(grown, grown_optimizer(grown, tmp_path / "grown", None, {}), STEPS_BEFORE, STEPS)
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-8


def test_what_is_new_starts_without_moments(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True))
    trained(source, trainer_groups(source), tmp_path / "source")
    grown, optimizer = grow_both(
        tmp_path / "source",
        tmp_path / "padded",
        width="zero_pad",
        depth="identity",
        hidden_size=48,
        num_hidden_layers=3,
    )
    old = torch.load(tmp_path / "source" / "optimizer.pt", weights_only=True)["state"]
    state = {name: optimizer.state[parameter] for name, parameter in grown.named_parameters()}
    embedding = state["model.embed_tokens.weight"]["exp_avg"]
    # The embedding is multiplied by sqrt(D / d), so its gradient is divided by it.
    torch.testing.assert_close(embedding[:, :32], old[0]["exp_avg"] * (32 / 48) ** 0.5, rtol=1e-6, atol=0)
    assert not embedding[:, 32:].any()
    new = [entry for name, entry in state.items() if name.startswith(f"model.layers.{_new_layer(grown)}.")]
    assert new and not any(entry["exp_avg"].any() or entry["exp_avg_sq"].any() for entry in new)


def _new_layer(model: PreTrainedModel) -> int:
    (layer,) = model.config.to_dict()["growth"]["new_layers"]
    return int(layer)


def test_asymmetric_reset_keeps_the_first_copies(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True))
    trained(source, trainer_groups(source), tmp_path / "source")
    (_, kept), (_, scaled) = (
        grow_both(tmp_path / "source", tmp_path / mode, moments=mode, **GROWTHS["three-fold, hidden size alone"])
        for mode in ("asymmetric_reset", "scale")
    )
    for number, entry in scaled.state_dict()["state"].items():
        other = kept.state_dict()["state"][number]
        first = tuple(slice(0, 32) if size == 96 else slice(None) for size in entry["exp_avg"].shape)
        for key in ("exp_avg", "exp_avg_sq"):
            expected = torch.zeros_like(entry[key])
            expected[first] = entry[key][first]
            assert torch.equal(other[key], expected)
        assert other["step"] == entry["step"] == STEPS_BEFORE


def test_drop_keeps_groups_alone(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True))
    trained(source, trainer_groups(source), tmp_path / "source")
    _, optimizer = grow_both(tmp_path / "source", tmp_path / "grown", moments="drop", **GROWTHS["all widths"])
    assert not optimizer.state
    rates = {(group["lr"], group["weight_decay"], group["eps"]) for group in optimizer.param_groups}
    assert (LR / 2, DECAY * 2, EPS / 2) in rates


def test_muon_momentum(tmp_path: Path) -> None:
    """The step of a clone is the clone of the step: the rate makes up for the spread of an orthogonal update."""
    source = random_model(FAMILIES["llama"](False))
    matrices = [p for name, p in source.named_parameters() if p.dim() == 2 and ".layers." in name]
    optimizer = torch.optim.Muon(matrices, lr=LR, weight_decay=DECAY)
    train(source, optimizer, 0, STEPS_BEFORE)
    source.save_pretrained(tmp_path / "source")
    torch.save(optimizer.state_dict(), tmp_path / "source" / "optimizer.pt")
    expected = train(source, optimizer, STEPS_BEFORE, STEPS)
    for name in ("all widths", "three-fold, hidden size alone"):
        grow_checkpoint(tmp_path / "source", tmp_path / name, snr_db=None, **GROWTHS[name])
        grow_optimizer_state(tmp_path / "source", tmp_path / name)
        grown = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)
        state = torch.load(tmp_path / name / "optimizer.pt", weights_only=True)
        parameters = dict(grown.named_parameters())
        moved = torch.optim.Muon(
            [{"params": [parameters[name] for name in group["param_names"]]} for group in state["param_groups"]]
        )
        moved.load_state_dict(state)
        losses = train(grown, moved, STEPS_BEFORE, STEPS)
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-8, name


# ---- What is refused ----


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused") / "source"
    model = random_model(FAMILIES["llama"](True))
    trained(model, trainer_groups(model), folder)
    return folder


def test_state_of_another_model(source: Path, tmp_path: Path) -> None:
    other = random_model(FAMILIES["llama"](False))
    other.save_pretrained(tmp_path / "other")
    grow_checkpoint(tmp_path / "other", tmp_path / "grown", hidden_size=64)
    (tmp_path / "other" / "optimizer.pt").write_bytes((source / "optimizer.pt").read_bytes())
    with pytest.raises(ValueError, match="not those of this llama model"):
        grow_optimizer_state(tmp_path / "other", tmp_path / "grown")
    with pytest.raises(ValueError, match="grown from other weights"):
        grow_optimizer_state(source, tmp_path / "grown")
    assert not (tmp_path / "grown" / "optimizer.pt").exists()


def test_sharded_state(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", hidden_size=64)
    (source / "optimizer.pt").rename(source / "kept")
    (source / "global_step10").mkdir()
    try:
        with pytest.raises(ValueError, match="sharded by DeepSpeed or FSDP"):
            grow_optimizer_state(source, tmp_path / "grown")
    finally:
        (source / "global_step10").rmdir()
        (source / "kept").rename(source / "optimizer.pt")


def test_pickled_code_is_not_run(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", hidden_size=64)
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({"state": {}, "param_groups": [Path("x")]}, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        grow_optimizer_state(tmp_path, tmp_path / "grown")


def test_a_damaged_schedule_leaves_no_half_of_a_checkpoint(source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", hidden_size=64)
    before = {path.name for path in (tmp_path / "grown").iterdir()}
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "trainer_state.json").write_text("{}")
    (tmp_path / "scheduler.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"scheduler\.pt cannot be read"):
        grow_optimizer_state(tmp_path, tmp_path / "grown")
    assert {path.name for path in (tmp_path / "grown").iterdir()} == before


@pytest.mark.parametrize(("momentum", "words"), [(0.9, "keeps 'momentum_buffer'"), (0.0, "has no betas")])
def test_an_optimizer_that_growth_cannot_follow(momentum: float, words: str, source: Path, tmp_path: Path) -> None:
    grow_checkpoint(source, tmp_path / "grown", hidden_size=64)
    model = random_model(FAMILIES["llama"](True))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum)
    train(model, optimizer, 0, 1)
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=f"{words}.* which growth can"):
        grow_optimizer_state(tmp_path, tmp_path / "grown")
