"""`MupConfig` and `MupForCausalLM`: a muP model that is a Granite checkpoint, and at the base shape a plain Llama."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, LlamaForCausalLM

from hf_warmscale.architecture import describe
from hf_warmscale.mup import MupConfig, MupForCausalLM, Parametrization, mup_param_groups, mup_table
from hf_warmscale.mup.folded_form import folded_scalings
from hf_warmscale.mup.granite_form import GraniteForm
from tests.conftest import perturb
from tests.mup.tiny import tiny_mup

BASE = {"base_hidden_size": 16, "base_num_hidden_layers": 2}
IDS = torch.arange(24).reshape(2, 12) % 48


def config(width: int = 16, layers: int = 2, mup: dict[str, Any] | None = None, **changes: Any) -> MupConfig:
    fields: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 8,
        "num_key_value_heads": width // 16,
        "max_position_embeddings": 64,
        "mup": {**BASE, **(mup or {})},
    }
    return MupConfig(**{**fields, **changes})


def llama_twin(config: MupConfig) -> LlamaForCausalLM:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings", "attention_bias")
    return LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in (*names, *more)}))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rule", ["mup", "completep"])
def test_base_shape_is_the_standard_parametrization_bit_for_bit(tied: bool, rule: str) -> None:
    """Weights, logits, and ten AdamW steps, against the Llama of the same seed."""
    shape = config(mup={"rule": rule}, tie_word_embeddings=tied)
    torch.manual_seed(3)
    ours = MupForCausalLM(shape)
    torch.manual_seed(3)
    llama = llama_twin(shape)
    groups = mup_param_groups(ours, lr=1e-2, weight_decay=0.1, eps=1e-8)
    decayed = [parameter for parameter in llama.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in llama.parameters() if parameter.ndim == 1]
    plain = [{"params": decayed, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups), torch.optim.AdamW(plain, lr=1e-2, eps=1e-8)]
    for _ in range(10):
        for ours_, llama_ in zip(ours.state_dict().items(), llama.state_dict().items(), strict=True):
            assert ours_[0] == llama_[0]
            assert torch.equal(ours_[1], llama_[1])
        losses = [model(input_ids=IDS, labels=IDS).loss for model in (ours, llama)]
        assert torch.equal(*losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tied", "biased"), [(False, False), (True, True)])
def test_a_saved_model_is_a_stock_granite(tmp_path: Path, dtype: torch.dtype, tied: bool, biased: bool) -> None:
    """Logits through AutoModel differ by 0.0; saved and loaded twice, the tensors are the same bits."""
    shape = config(
        64, 8, tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased, num_attention_heads=12, head_dim=8
    )
    model = MupForCausalLM(shape)
    perturb(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(tmp_path / "once")
    once = MupForCausalLM.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    twice = MupForCausalLM.from_pretrained(tmp_path / "twice")
    assert type(stock).__name__ == "GraniteForCausalLM"
    assert stock.config.mup == twice.config.mup == once.config.mup == shape.mup
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), once.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, once(IDS).logits)
        assert torch.equal(once(IDS).logits, stock(IDS).logits)
        assert torch.equal(once(IDS).logits, twice(IDS).logits)
    assert names_and_rates(stock) == names_and_rates(once)


def names_and_rates(model: torch.nn.Module) -> list[tuple[list[str], float, float, float]]:
    """Return the groups by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = mup_param_groups(model, lr=1e-2, weight_decay=0.1)
    return [([names[id(p)] for p in g["params"]], g["lr"], g["weight_decay"], g["eps"]) for g in groups]


def test_multipliers_are_saved_even_where_they_equal_a_default(tmp_path: Path) -> None:
    """A stock Granite reads 1.0 where a key is missing; what is dropped as 'our default' would change its logits."""
    shape = config(mup={"embedding_alpha": 12.0}, head_dim=4)
    shape.save_pretrained(tmp_path)
    stock = GraniteConfig.from_pretrained(tmp_path)
    for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "head_dim"):
        assert getattr(stock, name) == getattr(shape, name)


def test_init_follows_the_table() -> None:
    """Four times the width: matrices start at half the standard deviation, embedding and readout at the same."""
    model = MupForCausalLM(config(256, 2, mup={"base_hidden_size": 64}, vocab_size=512))
    sigma = {name: float(parameter.detach().std()) / 0.02 for name, parameter in model.named_parameters()}
    for name, value in sigma.items():
        if name.endswith("norm.weight"):
            assert value == 0
        else:
            assert value == pytest.approx(0.5 if "proj" in name else 1.0, rel=0.03), name


def test_each_matrix_scales_with_its_own_fan_in() -> None:
    """Only the MLP is wider than the base's: only what sums over it starts smaller and moves less."""
    entry = {"base_intermediate_size": 16, "base_num_attention_heads": 2, "base_num_key_value_heads": 1}
    model = MupForCausalLM(config(16, intermediate_size=64, mup=entry))
    assert float(model.model.layers[0].mlp.down_proj.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    rates = {name: lr for names, lr, _, _ in names_and_rates(model) for name in names}
    assert {name for name, lr in rates.items() if lr != 1e-2} == {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)
    }


def test_zero_init() -> None:
    model = MupForCausalLM(config(mup={"zero_init_readout": True, "zero_init_query": True}))
    zero = {name for name, parameter in model.named_parameters() if not parameter.any()}
    assert zero == {"lm_head.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2))}


def test_missing_tensors_are_drawn_by_the_table_and_loaded_ones_left_alone(tmp_path: Path) -> None:
    shape = config(64, 2)
    model = MupForCausalLM(shape)
    perturb(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = MupForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    assert float(loaded.model.layers[1].mlp.up_proj.weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_groups_of_a_model_four_times_as_wide_and_twice_as_deep() -> None:
    model = MupForCausalLM(config(64, 4))
    groups = mup_param_groups(model, lr=1e-2, weight_decay=0.1, eps=1e-8)
    rows = {group["name"]: (group["lr"], group["weight_decay"], group["eps"]) for group in groups}
    assert groups[0]["name"] == "embedding+readout"
    assert rows["embedding+readout"] == (1e-2, 0.1, 1e-8 / 4)
    assert rows["final_norm"] == (1e-2, 0.0, 1e-8 / 4)
    assert rows["norm"] == (1e-2, 0.0, 1e-8 / 8)
    assert rows["hidden"] == (1e-2 / 4, 0.4, 1e-8 / 8)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_the_form_agrees_with_the_described_model(tied: bool) -> None:
    """The scalings that are written by hand for this one family are those that probing finds."""
    biases: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": tied}
    wide, base = config(64, 4, **biases), config(16, 2, **biases)
    form = GraniteForm.from_config(wide)
    found = folded_scalings(describe(wide), describe(base), Parametrization("standard"))
    assert list(found) == list(form.scalings())
    for name, place in form.scalings().items():
        assert place.role == found[name].role
        assert place.ratios.depth == found[name].ratios.depth
        if place.role == "hidden":
            assert place.ratios == found[name].ratios


def test_resized_keeps_the_base_and_moves_the_multipliers() -> None:
    small = config(16, 2, tie_word_embeddings=True)
    large = small.resized(hidden_size=64, intermediate_size=128, num_attention_heads=8, num_hidden_layers=8)
    assert large.mup == small.mup
    assert (large.logits_scaling, large.residual_multiplier, large.attention_multiplier) == (4.0, 0.25, 8**-0.5)
    assert large.head_dim == small.head_dim
    assert copy.deepcopy(large).to_dict() == large.to_dict()


@pytest.mark.parametrize(
    ("changes", "entry", "message"),
    [
        ({}, {"base_hidden_size": 32}, "base's hidden_size is 32, wider than the model's 16"),
        ({}, {"base_intermediate_size": 64}, "base's intermediate_size is 64, wider than the model's"),
        (
            {"head_dim": None},
            {"base_hidden_size": 8, "base_num_attention_heads": 2},
            "base has heads of 4, the model of 8",
        ),
        ({}, {"base_hidden_size": "oops"}, "base_hidden_size is 'oops'; it must be a positive whole number"),
        ({}, {"base_num_hidden_layers": 0}, "base_num_hidden_layers is 0"),
        ({}, {"rule": "spectral"}, "'spectral' is unknown"),
        ({}, {"bas_hidden_size": 4}, "'bas_hidden_size' of the config's mup entry is unknown"),
        ({"tie_word_embeddings": True}, {"zero_init_readout": True}, "needs an untied readout"),
        ({"logits_scaling": 3.0}, {}, "logits_scaling is 3.0, but its mup entry makes it 1.0"),
        ({"num_key_value_heads": 3}, {}, "attention heads 2 is not a multiple of the number of key-value heads 3"),
        ({"head_dim": 5}, {}, "head_dim 5 is odd"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(mup=entry, **changes)


def test_the_base_widths_follow_another_base_hidden_size() -> None:
    wide = config(64, 4)
    assert wide.with_mup(base_hidden_size=32).mup == config(64, 4, mup={"base_hidden_size": 32}).mup


def test_a_config_without_a_base_is_refused() -> None:
    with pytest.raises(ValueError, match="mup entry is None"):
        MupConfig(hidden_size=16)


def test_fields_are_strict_when_assigned_later() -> None:
    with pytest.raises(StrictDataclassFieldValidationError):
        config().hidden_size = "wide"  # type: ignore[assignment]


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 2}, {"num_hidden_layers": 1}])
def test_a_size_in_from_pretrained_moves_the_multipliers(tmp_path: Path, sizes: dict[str, int]) -> None:
    """The blocks that are loaded train, and save, with the multipliers of their own number."""
    whole = tiny_mup()
    whole.save_pretrained(tmp_path / "whole")
    cut = MupForCausalLM.from_pretrained(tmp_path / "whole", **dict[str, Any](sizes))
    expected = whole.config.resized(**sizes)
    assert cut.config.residual_multiplier == expected.residual_multiplier == 2 / sizes["num_hidden_layers"]
    assert torch.equal(cut.model.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight)
    cut.save_pretrained(tmp_path / "cut")
    again = MupForCausalLM.from_pretrained(tmp_path / "cut")
    assert again.config.residual_multiplier == expected.residual_multiplier


@pytest.mark.parametrize("stale", [{"num_hidden_layers": 2}, {"hidden_size": 32}, {"residual_multiplier": 0.3}])
def test_stale_multipliers_are_refused(stale: dict[str, Any]) -> None:
    config = tiny_mup().config
    stock = GraniteConfig(**config.to_dict())
    for name, value in stale.items():
        setattr(config, name, value)
        setattr(stock, name, value)
    with pytest.raises(ValueError, match=r"change sizes with config\.resized"):
        MupForCausalLM(config)
    with pytest.raises(ValueError, match=r"change sizes with config\.resized"):
        mup_table(stock)
