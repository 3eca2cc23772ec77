"""No growth is called exact that is not: families whose own arithmetic the operators do not know of."""

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, DeepseekV3Config, PreTrainedConfig

from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained, shrink_from_pretrained
from tests.resize.families import GROUPED, HEADED, SIZES, random_model
from tests.resize.growing.test_exactness import logit_error

DEEPER: dict[str, Any] = {"num_hidden_layers": 4, "depth": "identity"}
WIDER: dict[str, Any] = {"hidden_size": 64}
PADDED: dict[str, Any] = {"hidden_size": 48, "width": "zero_pad"}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "doge": HEADED,
    "beam": {**HEADED, "mlp_layer_types": ["dense", "dense"]},
    "bert-generation": {**SIZES, "is_decoder": True},
    "bert": {**SIZES, "is_decoder": True},
    "olmo": GROUPED,
    "nanochat": GROUPED,
    "falcon_h1": {**HEADED, "mamba_d_ssm": 32, "mamba_d_head": 8, "mamba_n_heads": 4, "mamba_d_state": 8},
}
INEXACT = [
    ("beam", DEEPER),  # each block's weight depends on its number: 1e-6 by the norms' eps
    ("bert-generation", WIDER | {"num_attention_heads": 8}),  # tied, and no norm stands before the readout
    ("olmo", PADDED),  # its norms have no gain that could be rescaled
    ("nanochat", PADDED),
    ("bert", DEEPER),  # a block that writes nothing still normalises
]
EXACT = [
    ("doge", WIDER),
    ("doge", DEEPER),  # each block multiplies the stream by a gain of its own
    ("doge", PADDED),
    ("beam", WIDER),
    ("beam", PADDED),
    ("olmo", WIDER),
    ("nanochat", DEEPER),
    ("falcon_h1", DEEPER),  # two blocks, and lists of two that are not for them
    ("bert", WIDER | {"num_attention_heads": 8}),
]


def config_of(family: str) -> PreTrainedConfig:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers does not have {family}")
    return AutoConfig.for_model(family, **CONFIGS[family])


@pytest.mark.parametrize("family, growth", INEXACT)
def test_what_is_not_exact_says_so(family: str, growth: Mapping[str, Any]) -> None:
    source = random_model(config_of(family))
    with pytest.warns(UserWarning, match=f"cannot here: a tiny {family} model grown like this moves a logit by"):
        grown = grow_from_pretrained(source, **growth, verify=False)
    receipt: Any = grown.growth_receipt
    assert not receipt["exact"]
    with StayInFloat64():
        assert logit_error(source, grown) > 1e-8


@pytest.mark.parametrize("family, growth", EXACT)
def test_and_other_operators_on_the_same_families_are(family: str, growth: Mapping[str, Any]) -> None:
    source = random_model(config_of(family))
    grown = grow_from_pretrained(source, **growth, verify=False)
    receipt: Any = grown.growth_receipt
    assert receipt["exact"] and receipt["inexact_because"] is None
    with StayInFloat64():
        assert logit_error(source, grown) <= 1e-11


def test_a_mup_model_is_proved_with_its_multipliers() -> None:
    config = MupConfig(**HEADED, mup={"base_hidden_size": 16, "base_num_hidden_layers": 1, "rule": "completep"})
    grown = grow_from_pretrained(MupForCausalLM(config), **WIDER, **DEEPER, verify=False)
    assert grown.growth_receipt["exact"]  # type: ignore[index]


MIXTURE: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_hidden_layers": 3}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LEADING: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {**LATENT, **ROUTED},
    "deepseek_v32": {**LATENT, **ROUTED, "index_head_dim": 16, "index_n_heads": 2},
    "glm4_moe": {**ROUTED, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", LEADING)
def test_mixtures_behind_dense_blocks_grow_exactly(family: str) -> None:
    source = random_model(AutoConfig.for_model(family, **{**SIZES, **MIXTURE, **LEADING[family]}))
    growths: list[dict[str, Any]] = [
        {"num_hidden_layers": 6, "depth": "identity"},
        {"hidden_size": 64, "intermediate_size": 96, "snr_db": None},
    ]
    for growth in growths:
        grown: Any = grow_from_pretrained(source, **growth, verify=False)
        assert grown.growth_receipt["exact"], grown.growth_receipt["inexact_because"]
        assert logit_error(source, grown) <= 5e-6  # their routers compute in float32


def test_dense_blocks_before_a_mixture_stay_in_front() -> None:
    config = DeepseekV3Config(
        **SIZES | LATENT | MIXTURE, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1
    )
    source = random_model(config)
    grown = grow_from_pretrained(source, num_hidden_layers=6, depth="identity", verify=False)
    assert grown.config.to_dict()["first_k_dense_replace"] == 2
    assert grown.growth_receipt["exact"]  # type: ignore[index]
    assert logit_error(source, grown) <= 5e-6  # its router computes in float32
    small = shrink_from_pretrained(grown, verify=False)
    assert small.config.to_dict()["first_k_dense_replace"] == 1
    with pytest.raises(ValueError, match=r"Block 3 of the target would copy block 0, which has no mlp\.experts"):
        grow_from_pretrained(source, num_hidden_layers=6, depth="stack", verify=False)
