"""Families and configs that once failed for a small reason are described, grown and measured."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_warmscale.architecture import Axis, StayInFloat64, describe
from hf_warmscale.compat.transformers import short_scans
from hf_warmscale.resize import grow_from_pretrained, shrink_from_pretrained
from hf_warmscale.resize.growing.verify import compare_models
from tests.resize.families import GROUPED, SIZES, random_model
from tests.resize.growing.test_exactness import logit_error

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
RECURRENT = {
    **GROUPED,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
KIMI = {
    **SIZES,
    "num_key_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse"],
    "linear_head_dim": 4,
    "linear_num_heads": 4,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 12,
}
GEMMA4 = {
    **GROUPED,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
}
CONVOLUTION = {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "num_dense_layers": 0}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "helium": {**GROUPED, "head_dim": 8},  # its projections need hidden size = heads x head size
    "phi3": {**GROUPED, "rope_parameters": LONG},  # a factor for each frequency
    "roberta": {**SIZES, "is_decoder": True},  # positions begin behind the padding token
    "xlm-roberta-xl": {**SIZES, "is_decoder": True},
    "camembert": {**SIZES, "is_decoder": True},  # its tied table bears the name of the readout
    "gpt_neox_japanese": {**SIZES},
    "persimmon": {**SIZES},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": RECURRENT,
    "qwen3_5_moe_text": RECURRENT,
    "gemma4_text": GEMMA4,
    "lfm2": CONVOLUTION,
    "lfm2_moe": {**CONVOLUTION, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
}
MIXED: Mapping[str, Mapping[str, Any]] = {
    "qwen3_next": RECURRENT,
    "qwen3_5_text": RECURRENT,
    "qwen3_5_moe_text": RECURRENT,
    "kimi_linear": KIMI,  # both kinds of attention call their projections alike
}
"""Blocks of linear and of full attention."""
HEADS: Mapping[str, Any] = {"phi3": {"num_attention_heads": 8, "num_key_value_heads": 4}}
"""Where a family checks the rotary factors against hidden size / heads."""


def config_of(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **CONFIGS[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_described_grown_and_measured(family: str) -> None:
    source = random_model(config_of(family))
    grown = grow_from_pretrained(source, num_hidden_layers=2 * source.config.num_hidden_layers, depth="stack")
    wide: Any = grow_from_pretrained(source, hidden_size=64, **HEADS.get(family, {}), snr_db=None)
    assert grown.growth_receipt["verification"] is not None  # type: ignore[index]
    assert wide.growth_receipt["exact"], wide.growth_receipt["inexact_because"]
    with StayInFloat64(), short_scans(source.config):
        assert logit_error(source, wide) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", MIXED)
@pytest.mark.filterwarnings("error:This growth is meant to keep the logits")
def test_linear_and_full_attention_grow_within_the_rounding_of_the_dtype(family: str, dtype: torch.dtype) -> None:
    source = random_model(AutoConfig.for_model(family, **MIXED[family]), dtype=dtype)
    deeper: Any = grow_from_pretrained(source, num_hidden_layers=4, depth="identity")
    assert deeper.growth_receipt["exact"] and logit_error(source, deeper) == 0
    for growth in ({"hidden_size": 96, "num_attention_heads": 8}, {"hidden_size": 48, "width": "zero_pad"}):
        wide: Any = grow_from_pretrained(source, **growth)
        receipt, seen = wide.growth_receipt, wide.growth_receipt["verification"]
        assert receipt["exact"] and seen["kl_divergence"] < torch.finfo(dtype).eps
        assert seen["max_abs_logit_difference"] <= seen["rounding"]


def test_a_fault_is_not_taken_for_rounding() -> None:
    """In bfloat16 a router may pick another expert; a block that writes twice what it should moves logits more."""
    source, tokens = random_model(config_of("qwen3_next"), dtype=torch.bfloat16), torch.arange(60).reshape(2, 30)
    faulty = copy.deepcopy(source)
    faulty.get_parameter("model.layers.1.self_attn.o_proj.weight").data *= 2
    seen = compare_models(source, faulty, "model.layers", tokens, exact=True)
    assert seen is not None and seen.max_abs_logit_difference > seen.rounding


def test_one_name_for_two_kinds_of_attention() -> None:
    """The output of Kimi-Linear's full attention reads heads, that of its linear attention a width without an axis."""
    source = random_model(AutoConfig.for_model("kimi_linear", **KIMI)).double()
    described = describe(source.config)
    reads = [described.parameters[f"model.layers.{layer}.self_attn.o_proj.weight"] for layer in (0, 1)]
    assert [weight.reads(Axis.HEADS) for weight in reads] == [False, True]
    wide = grow_from_pretrained(source, hidden_size=64, num_attention_heads=8, moe_intermediate_size=24)
    with StayInFloat64(), short_scans(source.config):
        assert logit_error(source, wide.double()) <= 1e-11


def test_what_single_blocks_set_for_themselves_goes_with_them() -> None:
    """In Gemma 4 the blocks of full attention have a head size of their own, by their index in the config."""
    source = random_model(config_of("gemma4_text"))
    deeper: Any = grow_from_pretrained(source, num_hidden_layers=6, depth="stack")
    own = {int(block): settings for block, settings in deeper.config.to_dict()["per_layer_config"].items()}
    assert own == {block: {"head_dim": 16} for block in (1, 3, 5)}
    assert deeper.model.layers[5].self_attn.q_proj.weight.shape == (4 * 16, 32)


def test_a_last_block_that_the_family_makes_another_kind() -> None:
    """Gemma 4 gives its last block full attention, whatever its config says."""
    with pytest.raises(ValueError, match=r"makes block 2, a copy with the entry 'sliding_attention' in layer_types"):
        grow_from_pretrained(random_model(config_of("gemma4_text")), num_hidden_layers=3, depth="stack")


@pytest.mark.parametrize("family", ["gemma4_text", "doge"])
def test_an_inserted_block_hands_on_a_stream_that_blocks_multiply(family: str) -> None:
    """Gemma 4 multiplies the stream by a scalar in each block, Doge by two vectors; all are moved from 1 here."""
    source = random_model(AutoConfig.for_model(family, **CONFIGS.get(family, GROUPED)))
    gains = describe(source.config).stream_gains
    assert len(gains) == {"gemma4_text": 2, "doge": 4}[family]
    for name in gains:
        source.get_parameter(name).data.add_(0.3) if family == "doge" else source.get_buffer(name).add_(0.3)
    grown: Any = grow_from_pretrained(source, num_hidden_layers=4, depth="identity")
    assert grown.growth_receipt["exact"], grown.growth_receipt["inexact_because"]
    with StayInFloat64():
        assert logit_error(source, grown) == 0


def test_a_convolution_that_is_gated_by_the_stream() -> None:
    """LFM2 multiplies three projections of the width of the stream; `zero_pad` would scale all three, and says so."""
    source = random_model(config_of("lfm2"))
    deeper: Any = grow_from_pretrained(source, num_hidden_layers=4, depth="identity")
    assert deeper.growth_receipt["exact"] and logit_error(source, deeper) == 0
    with pytest.warns(UserWarning, match="meant to keep the logits"):
        padded: Any = grow_from_pretrained(source, hidden_size=48, width="zero_pad")
    assert not padded.growth_receipt["exact"]


def test_a_size_that_the_family_computes_from_its_field_grows() -> None:
    """LFM2 makes 48 of an `intermediate_size` of 66: two thirds, rounded up to a multiple of 8."""
    source = random_model(AutoConfig.for_model("lfm2", **{**CONVOLUTION, "intermediate_size": 66}))
    assert describe(source.config).sizes[Axis.INTERMEDIATE] == 48
    grown: Any = grow_from_pretrained(source, hidden_size=64, intermediate_size=96)
    assert grown.model.layers[0].feed_forward.w1.weight.shape == (96, 64)
    with StayInFloat64():
        assert logit_error(source, grown) <= 1e-11
    small: Any = shrink_from_pretrained(source, intermediate_size=24)
    assert small.model.layers[0].feed_forward.w1.weight.shape == (24, 32)


def test_an_inserted_block_takes_from_another_what_its_own_lacks() -> None:
    """The first block of ModernBERT has no norm before its attention; a copy of it in second place has one."""
    config = AutoConfig.for_model("modernbert-decoder", **SIZES)
    source = random_model(config)
    grown: Any = grow_from_pretrained(source, num_hidden_layers=4, depth="identity")
    assert grown.growth_receipt["exact"], grown.growth_receipt["inexact_because"]
    with StayInFloat64():
        assert logit_error(source, grown) <= 1e-11


def test_a_stray_field_sets_nothing() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_head=4, n_layer=2, n_inner=48, vocab_size=64, n_positions=64)
    config.intermediate_size = 99
    source = random_model(config)
    grown = grow_from_pretrained(source, intermediate_size=96, verify=False)
    assert grown.config.to_dict()["n_inner"] == 96
    assert describe(AutoConfig.for_model("bloom", hidden_size=32, n_head=4, intermediate_size=7)).derived


def test_a_model_of_several_parts_is_refused_in_one_sentence() -> None:
    config = AutoConfig.for_model("gemma3")
    for refused in (lambda: describe(config), lambda: grow_from_pretrained(tiny_composite(), num_hidden_layers=4)):
        with pytest.raises(ValueError, match=r"wraps a language model with other parts; save its language model.*\.$"):
            refused()


def tiny_composite() -> Any:
    text = {**GROUPED, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_an_ambient_device_changes_nothing() -> None:
    source = random_model(config_of("phi3"), dtype=torch.float32)
    expected = grow_from_pretrained(source, hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    with torch.device("meta"):
        described = describe(source.config)
        grown = grow_from_pretrained(source, hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    assert described.sizes == describe(source.config).sizes
    assert grown.device.type == "cpu" and grown.growth_receipt == expected.growth_receipt
    assert all(torch.equal(grown.state_dict()[name], weight) for name, weight in expected.state_dict().items())


def test_flash_attention_is_put_aside_to_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run on this device, and is there again afterwards."""
    source = random_model(config_of("phi3"), dtype=torch.float32)
    source.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(type(source), "set_attn_implementation", set_internally)
    grown: Any = grow_from_pretrained(source, hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    assert grown.growth_receipt["verification"] is not None
    assert source.config._attn_implementation == grown.config._attn_implementation == "flash_attention_2"


def set_internally(model: Any, implementation: str) -> None:
    model.config._attn_implementation_internal = implementation
