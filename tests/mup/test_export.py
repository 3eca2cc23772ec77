"""A muP model as a plain Llama: the same function, bit for bit where it can be, and the same training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from hf_warmscale.mup import (
    MupConfig,
    MupForCausalLM,
    TrainingFactors,
    export_checkpoint,
    fold_multipliers,
    mup_param_groups,
    training_factors,
)
from hf_warmscale.mup.export import serving_limits
from hf_warmscale.mup.fold import fold_factor
from tests.conftest import perturb

IDS = torch.randint(0, 48, (2, 24), generator=torch.Generator().manual_seed(0))
POWERS_OF_TWO = {"embedding_alpha": 4.0, "readout_alpha": 0.5}
OTHERS = {"embedding_alpha": 12.0, "readout_alpha": 0.3, "depth_alpha": 0.75}
SHAPES = [
    pytest.param({"tie_word_embeddings": tied, "attention_bias": biased, "mlp_bias": biased}, id=f"{tied=}, {biased=}")
    for tied in (False, True)
    for biased in (False, True)
]


def model(constants: dict[str, Any], shape: dict[str, Any], dtype: torch.dtype = torch.float32) -> MupForCausalLM:
    """A perturbed model of four times the base width and depth, with grouped queries."""
    fields: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "mup": {"base_hidden_size": 16, "base_num_hidden_layers": 1, **constants},
    }
    config = MupConfig(**{**fields, **shape})
    torch.manual_seed(0)
    made = MupForCausalLM(config)
    perturb(made, std=0.05)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    return made


@torch.no_grad()
def difference(one: torch.nn.Module, two: torch.nn.Module) -> tuple[float, float]:
    """Return the largest difference of a logit, and that of the loss."""
    outputs = [each(input_ids=IDS, labels=IDS) for each in (one, two)]
    return float((outputs[0].logits - outputs[1].logits).abs().max()), float(outputs[0].loss - outputs[1].loss)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold_is_bit_identical_for_powers_of_two(shape: dict[str, Any], dtype: torch.dtype) -> None:
    granite = model(POWERS_OF_TWO, shape, dtype)
    assert difference(granite, fold_multipliers(granite)) == (0.0, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_is_exact_otherwise(shape: dict[str, Any], float64_norms: None) -> None:
    granite = model(OTHERS, shape, torch.float64)
    logit, loss = difference(granite, fold_multipliers(granite))
    assert max(logit, abs(loss)) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_in_float32(shape: dict[str, Any]) -> None:
    granite = model(OTHERS, shape)
    logit, loss = difference(granite, fold_multipliers(granite))
    assert logit <= 1e-5
    assert abs(loss) <= 1e-6


def test_fold_of_a_granite_with_its_own_attention_scale() -> None:
    """Published Granites have a scale that is not head_dim^-1/2: it goes into the queries."""
    config = GraniteConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_multiplier=1 / 64,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        tie_word_embeddings=True,
        attention_bias=True,
    )
    granite = GraniteForCausalLM(config)
    perturb(granite, std=0.2)
    assert difference(granite, fold_multipliers(granite))[0] <= 1e-5


@pytest.mark.parametrize("to", ["llama", "granite"])
def test_exported_checkpoint_loads_and_matches(tmp_path: Path, to: Any) -> None:
    granite = model(POWERS_OF_TWO, {"tie_word_embeddings": True})
    granite.save_pretrained(tmp_path / "mup")
    receipt = export_checkpoint(tmp_path / "mup", tmp_path / "out", to=to, max_shard_size="50KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.model_type == to
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "mup" not in loaded.config.to_dict()
    assert difference(granite, loaded) == (0.0, 0.0)
    assert receipt.exact
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "export.json").read_text())["to"] == to
    factors = {"embed_tokens": 4.0, "o_proj": 0.25, "down_proj": 0.25, "norm": 1 / 32}
    assert receipt.factors == (factors if to == "llama" else {})


@pytest.mark.parametrize("tied", [False, True])
def test_training_the_folded_llama_follows_the_granite_form(tied: bool, tmp_path: Path, float64_norms: None) -> None:
    """Losses and weight norms within 1e-9 over 50 AdamW steps in float64, with the factors read from their file."""
    granite = model(OTHERS, {"tie_word_embeddings": tied, "attention_bias": True}, torch.float64)
    llama = fold_multipliers(granite)
    training_factors(granite.config).save(tmp_path)
    factors = TrainingFactors.load(tmp_path)
    optimizers = [
        torch.optim.AdamW(mup_param_groups(granite, lr=3e-3, weight_decay=0.1, eps=1e-6)),
        torch.optim.AdamW(mup_param_groups(llama, factors=factors, lr=3e-3, weight_decay=0.1, eps=1e-6)),
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        batch = torch.randint(0, 48, (2, 12), generator=generator)
        losses = [each(input_ids=batch, labels=batch).loss for each in (granite, llama)]
        assert abs(losses[0] - losses[1]) < 1e-9
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = zip(granite.named_parameters(), llama.parameters(), strict=True)
    for (name, one), two in trained:
        norms = float(one.detach().norm()), float(two.detach().norm())
        assert norms[1] == pytest.approx(fold_factor(granite.config, name) * norms[0], rel=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_an_export_of_an_export_keeps_its_rates(tied: bool, tmp_path: Path) -> None:
    """Through Granite to Llama, the factors are those of the direct way."""
    model(OTHERS, {"tie_word_embeddings": tied}).save_pretrained(tmp_path / "mup")
    export_checkpoint(tmp_path / "mup", tmp_path / "granite", to="granite")
    export_checkpoint(tmp_path / "granite", tmp_path / "again", to="granite")
    for source, output in (("mup", "direct"), ("granite", "through"), ("again", "twice")):
        export_checkpoint(tmp_path / source, tmp_path / output)
    direct, *others = (TrainingFactors.load(tmp_path / name) for name in ("direct", "through", "twice"))
    assert {own.lr for _, own in direct.factors.values()} != {1.0}
    for other in others:
        assert other.factors.keys() == direct.factors.keys()
        for name, (role, own) in direct.factors.items():
            same = other.factors[name]
            assert same[0] == role
            assert (same[1].lr, same[1].weight_decay, same[1].eps) == pytest.approx(
                (own.lr, own.weight_decay, own.eps), rel=1e-12
            )


def test_factors_of_another_model_are_refused(tmp_path: Path) -> None:
    model(OTHERS, {}).save_pretrained(tmp_path / "mup")
    export_checkpoint(tmp_path / "mup", tmp_path / "granite", to="granite")
    path = tmp_path / "granite" / "mup_factors.json"
    path.write_text(path.read_text().replace("layers.3.", "layers.9."))
    with pytest.raises(ValueError, match=r"mup_factors\.json and the model differ in model\.layers\.3"):
        export_checkpoint(tmp_path / "granite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_engines_that_cannot_run_an_export_are_named() -> None:
    usual = model(POWERS_OF_TWO, {}).config
    odd = model(POWERS_OF_TWO, {"num_attention_heads": 4, "head_dim": 8, "hidden_act": "gelu"}).config
    assert serving_limits(usual, "granite") == serving_limits(usual, "llama") == serving_limits(odd, "llama") == []
    silu, head_dim = serving_limits(odd, "granite")
    assert "compute silu, and hidden_act is gelu" in silu
    assert "llama.cpp's converter drops head_dim" in head_dim


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    odd = model(POWERS_OF_TWO, {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8})
    with pytest.raises(ValueError, match="multiple of the number of heads, and 64 is not one of 6"):
        fold_multipliers(odd)
    llama = fold_multipliers(model(POWERS_OF_TWO, {}))
    with pytest.raises(ValueError, match="LlamaForCausalLM, not a Granite"):
        fold_multipliers(llama)  # type: ignore[arg-type]
    llama.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="is a llama, not a Granite"):
        export_checkpoint(tmp_path / "llama", tmp_path / "out")
    with pytest.raises(ValueError, match="target 'gguf' is unknown"):
        export_checkpoint(tmp_path / "llama", tmp_path / "out", to="gguf")  # type: ignore[arg-type]
    broken = model(POWERS_OF_TWO, {})
    broken.model.norm.weight.data[0] = torch.nan
    broken.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        export_checkpoint(tmp_path / "nan", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert isinstance(llama, LlamaForCausalLM)
