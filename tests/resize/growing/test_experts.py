"""A dense model as a mixture of equal experts computes the same, before and after a reload."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_warmscale import grow_checkpoint, grow_from_pretrained, shrink_from_pretrained
from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.resize.growing import experts, proof
from hf_warmscale.resize.growing.replay import replay_stored
from tests.resize.families import FAMILIES, GROUPED, random_model
from tests.resize.growing.test_exactness import logit_error

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
    receipt: Any = grown.growth_receipt
    assert (receipt["width"], receipt["experts"], receipt["exact"]) == ("clone", 4, True)
    assert receipt["source_sizes"]["hidden_size"] == 32 and receipt["parameters"] == grown.num_parameters()


def test_a_size_of_the_sources_own_beside_experts_asks_for_nothing() -> None:
    source = random_model(FAMILIES["qwen3"](True))
    plain, named = (grow_from_pretrained(source, num_experts=4, hidden_size=size) for size in (None, 32))
    assert named.growth_receipt == plain.growth_receipt


GROWTHS: Mapping[str, Mapping[str, Any]] = {
    "experts": {},
    "wider, deeper and experts": {"hidden_size": 64, "num_hidden_layers": 3, "depth": "identity"},
    "experts in another dtype": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_streamed_and_in_memory_are_the_same_bits(family: str, tmp_path: Path) -> None:
    random_model(FAMILIES[family](True), dtype=torch.float32).save_pretrained(tmp_path / "source")
    for name, growth in GROWTHS.items():
        live = grow_from_pretrained(tmp_path / "source", num_experts=4, seed=5, verify=False, **growth)
        receipt = grow_checkpoint(tmp_path / "source", tmp_path / name, num_experts=4, seed=5, **growth)
        stored = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert type(stored) is type(live) and stored.dtype == live.dtype
        state = stored.state_dict()
        assert state.keys() == live.state_dict().keys()
        assert all(torch.equal(state[key], weight) for key, weight in live.state_dict().items()), name
        assert receipt.to_dict() == live.growth_receipt


def test_the_mixture_is_proved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the chosen experts that do not sum to 1 would be seen."""
    family, settings = experts.TARGETS["qwen2"]
    monkeypatch.setitem(experts.TARGETS, "qwen2", (family, {**settings, "norm_topk_prob": False}))
    proof._error_of_experts.cache_clear()
    with pytest.warns(UserWarning, match="tiny qwen2 model made a mixture moves a logit"):
        grown = grow_from_pretrained(random_model(FAMILIES["qwen2"](True)), num_experts=4, verify=False)
    proof._error_of_experts.cache_clear()
    assert not grown.growth_receipt["exact"]  # type: ignore[index]


def test_a_mixture_does_not_become_its_dense_source_again(tmp_path: Path) -> None:
    random_model(FAMILIES["mistral"](True)).save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "mixture", num_experts=4)
    with pytest.raises(ValueError, match="made experts, which cannot be undone; name at least one size"):
        shrink_from_pretrained(tmp_path / "mixture")
    with pytest.raises(ValueError, match="4 experts of each MLP"):
        replay_stored(tmp_path / "source", tmp_path / "mixture")


def test_refused() -> None:
    refusals: Mapping[str, tuple[Mapping[str, Any], str]] = {
        "gpt2": ({"num_experts": 4}, "gpt2 model cannot become a mixture"),
        "llama": ({"num_experts": 4}, "cannot become a mixtral model"),  # biases, which Mixtral has not
        "mistral": ({"num_experts": 1}, "choose more experts"),
        "qwen3": ({"num_experts": 4.0}, "whole number"),
        "mixtral": ({"num_experts": 8}, "number of experts cannot grow"),
    }
    for family, (request, words) in refusals.items():
        with pytest.raises(ValueError, match=words):
            grow_from_pretrained(random_model(FAMILIES[family](True)), **request)
