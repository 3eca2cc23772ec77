"""A live model set in place to a weighted sum of stored checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_warmscale.checkpoints import open_checkpoint, save_model
from hf_warmscale.merging.combine import CheckpointCombiner
from hf_warmscale.merging.weighted_sum import weighted_sum_
from tests.conftest import perturb
from tests.evaluation.tiny import tiny_llama

WEIGHTS = (0.2, -0.1, 0.9)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for seed in range(3):
        save_model(tiny_llama(seed=seed), tmp_path / f"checkpoint-{seed}")
    return sorted(tmp_path.iterdir())


def test_every_parameter_is_the_weighted_sum(folders: list[Path]) -> None:
    model = tiny_llama(seed=9)
    CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders]).combine(WEIGHTS)
    parts = [dict(tiny_llama(seed=seed).named_parameters()) for seed in range(3)]
    for name, parameter in model.named_parameters():
        expected = sum(weight * part[name].double() for weight, part in zip(WEIGHTS, parts, strict=True))
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_one_checkpoint_comes_back_bit_for_bit(folders: list[Path]) -> None:
    model = tiny_llama(seed=9)
    combiner = CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders])
    combiner.combine(WEIGHTS)
    combiner.combine((0.0, 1.0, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_llama(seed=1).parameters(), strict=True))


def test_the_files_stay_as_they_were(folders: list[Path]) -> None:
    before = [open_checkpoint(folder).content_hash() for folder in folders]
    CheckpointCombiner(tiny_llama(), [open_checkpoint(folder) for folder in folders]).combine(WEIGHTS)
    assert [open_checkpoint(folder).content_hash() for folder in folders] == before


def test_weights_may_differ_by_parameter(folders: list[Path]) -> None:
    model = tiny_llama(seed=9)
    weights = {name: (0.0, 0.0, 1.0) for name, _ in model.named_parameters()}
    weights["model.norm.weight"] = (1.0, 0.0, 0.0)
    CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders]).combine(weights)
    first, last = tiny_llama(seed=0), tiny_llama(seed=2)
    assert torch.equal(model.model.norm.weight, first.model.norm.weight)
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, last.model.layers[1].mlp.up_proj.weight)


def test_a_bfloat16_model_is_rounded_once(folders: list[Path]) -> None:
    wide, short = tiny_llama(seed=9).double(), tiny_llama(seed=9).bfloat16()
    for model in (wide, short):
        CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders]).combine(WEIGHTS)
    for exact, rounded in zip(wide.parameters(), short.parameters(), strict=True):
        assert (exact.bfloat16() == rounded).double().mean() > 0.999  # but for ties within float32


def test_a_family_that_is_converted_on_loading(tmp_path: Path) -> None:
    """Mixtral stores every expert apart and computes with fused ones."""
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    for seed in range(2):
        model = MixtralForCausalLM(config)
        perturb(model, seed=seed)
        save_model(model, tmp_path / str(seed))
    combiner = CheckpointCombiner(model, [open_checkpoint(tmp_path / str(seed)) for seed in range(2)])
    combiner.combine((1.0, 0.0))
    ids = torch.arange(10)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "0")(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)


def test_another_size_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"\[24, 16\] in .*checkpoint-0 and \[32, 16\] in the model"):
        CheckpointCombiner(tiny_llama(intermediate_size=32), [open_checkpoint(folders[0])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contiguous", [True, False])
def test_weighted_sum(dtype: torch.dtype, contiguous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_warmscale.merging.weighted_sum.CHUNK_ELEMENTS", 7)
    tensors = [torch.randn(5, 6).to(dtype) for _ in range(3)]
    out = torch.empty(5, 6, dtype=dtype) if contiguous else torch.empty(6, 5, dtype=dtype).t()
    weighted_sum_(out, tensors, (0.5, 0.0, 2.0))
    expected = (0.5 * tensors[0].double() + 2.0 * tensors[2].double()).to(dtype)
    torch.testing.assert_close(out, expected)


def test_a_source_of_weight_zero_is_not_read() -> None:
    out = torch.ones(3)
    weighted_sum_(out, [torch.full((3,), torch.nan), torch.arange(3.0)], (0.0, 2.0))
    assert out.tolist() == [0.0, 2.0, 4.0]
    weighted_sum_(out, [torch.ones(3)], (0.0,))
    assert out.tolist() == [0.0, 0.0, 0.0]
