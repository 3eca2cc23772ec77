"""A dense model as a mixture of equal experts computes the same, before and after a reload."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_warmscale import grow_from_pretrained
from hf_warmscale.architecture import StayInFloat64
from tests.resize.families import FAMILIES, GROUPED, random_model
from tests.resize.test_exactness import logit_error

EXPECTED = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


@pytest.mark.parametrize("family", EXPECTED)
def test_equal_experts_are_the_dense_model(family: str, tmp_path: Path) -> None:
    config = LlamaConfig(**GROUPED) if family == "llama" else FAMILIES[family](True)
    source = random_model(config)
    grown = grow_from_pretrained(source, num_experts=4, seed=1)
    assert grown.config.model_type == EXPECTED[family]
    grown.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, experts_implementation="eager")
    for model in (grown, reloaded):
        assert logit_error(source, model) <= 5e-6
        with StayInFloat64():
            assert logit_error(source, model) <= 1e-11
    receipt: Any = grown.growth_receipt
    assert receipt["exact"] and receipt["sizes"]["num_experts"] == 4
    routers = [weight for name, weight in grown.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2 and all(weight.std() > 0 for weight in routers)


def test_wider_and_with_experts_in_one_call() -> None:
    source = random_model(FAMILIES["qwen3"](True))
    grown = grow_from_pretrained(source, hidden_size=64, num_experts=4, verify=False)
    assert grown.config.hidden_size == 64
    with StayInFloat64():
        assert logit_error(source, grown) <= 1e-11


def test_refused() -> None:
    with pytest.raises(ValueError, match="gpt2 model cannot become a mixture"):
        grow_from_pretrained(random_model(FAMILIES["gpt2"](True)), num_experts=4)
    with pytest.raises(ValueError, match="has no"):  # biases, which Mixtral has not
        grow_from_pretrained(random_model(FAMILIES["llama"](True)), num_experts=4)
    with pytest.raises(ValueError, match="take more experts"):
        grow_from_pretrained(random_model(FAMILIES["mistral"](True)), num_experts=1)
    with pytest.raises(ValueError, match="number of experts cannot grow"):
        grow_from_pretrained(random_model(FAMILIES["mixtral"](True)), num_experts=8)
