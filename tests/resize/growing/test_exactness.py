"""Operators that claim to keep the logits keep them: on every family, tied and untied, before and after a reload."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.architecture import StayInFloat64
from hf_warmscale.resize import grow_from_pretrained
from tests.resize.families import FAMILIES, random_model, tokens

CASES: Mapping[str, Mapping[str, Any]] = {
    "clone": {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 8, "num_key_value_heads": 4},
    "clone, key heads fixed": {"num_attention_heads": 8, "width": "clone"},
    "clone, three-fold and identity": {"hidden_size": 96, "num_hidden_layers": 4, "depth": "identity", "snr_db": None},
    "zero_pad": {"hidden_size": 48, "intermediate_size": 56, "width": "zero_pad"},
    "zero_pad, heads, vocabulary and identity": {
        "num_attention_heads": 8,
        "hidden_size": 64,
        "vocab_size": 80,
        "num_hidden_layers": 3,
        "depth": "identity",
        "width": "zero_pad",
    },
}


def logit_error(source: PreTrainedModel, grown: PreTrainedModel) -> float:
    with torch.no_grad():
        before, after = (model(input_ids=tokens(), use_cache=False).logits for model in (source, grown))
    return float((before - after[..., : before.shape[-1]]).abs().max())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay(family: str, tied: bool, tmp_path: Path) -> None:
    source = random_model(FAMILIES[family](tied))
    for name, case in CASES.items():
        named = {field: size for field, size in case.items() if field != "num_key_value_heads" or _has_kv(source)}
        grown = grow_from_pretrained(source, seed=1, **named)
        grown.save_pretrained(tmp_path / name)
        reloaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float64, experts_implementation="eager"
        )
        for model in (grown, reloaded):
            assert logit_error(source, model) <= 5e-6, name
            with StayInFloat64():
                assert logit_error(source, model) <= 1e-11, name
        receipt: Any = grown.growth_receipt
        assert receipt["exact"]
        assert (reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight) == tied


def _has_kv(model: PreTrainedModel) -> bool:
    return "num_key_value_heads" in model.config.to_dict()
