"""No growth is called exact that is not: families whose own arithmetic the operators do not know of."""

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained
from tests.resize.families import HEADED, SIZES, random_model
from tests.resize.test_exactness import logit_error

DEEPER: dict[str, Any] = {"num_hidden_layers": 4, "depth": "identity"}
WIDER: dict[str, Any] = {"hidden_size": 64}
PADDED: dict[str, Any] = {"hidden_size": 48, "width": "zero_pad"}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "doge": HEADED,
    "beam": {**HEADED, "mlp_layer_types": ["dense", "dense"]},
    "bert-generation": {**SIZES, "is_decoder": True},
    "bert": {**SIZES, "is_decoder": True},
}
INEXACT = [
    ("doge", DEEPER),  # each block multiplies the stream by a gain of its own
    ("doge", PADDED),
    ("beam", DEEPER),  # each block's weight depends on its number: 1e-6 by the norms' eps
    ("bert-generation", WIDER | {"num_attention_heads": 8}),  # tied, and no norm stands before the readout
    ("bert", DEEPER),  # a block that writes nothing still normalises
]
EXACT = [("doge", WIDER), ("beam", WIDER), ("beam", PADDED), ("bert", WIDER | {"num_attention_heads": 8})]


def config_of(family: str) -> PreTrainedConfig:
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
    assert receipt["exact"] and receipt["obstacle"] is None
    with StayInFloat64():
        assert logit_error(source, grown) <= 1e-11


def test_a_mup_model_is_proved_with_its_multipliers() -> None:
    config = MupConfig(**HEADED, mup={"base_hidden_size": 16, "base_num_hidden_layers": 1, "rule": "completep"})
    grown = grow_from_pretrained(MupForCausalLM(config), **WIDER, **DEEPER, verify=False)
    assert grown.growth_receipt["exact"]  # type: ignore[index]
