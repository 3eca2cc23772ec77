"""Measure what a growth moves: logits in float64 and float32, KL in bfloat16, before and after a save and reload.

A source is a small random model in which every parameter was moved by N(0, 0.1): a fresh init hides gains of 1 and
biases of 0. "Patched" means that norms, softmax and routers are computed, and held, in float64 too; transformers casts
them to float32.
"""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale import grow_checkpoint, grow_from_pretrained
from hf_warmscale.architecture import StayInFloat64, named_state
from hf_warmscale.architecture.proof import noise_std
from hf_warmscale.checkpoints import ModelWeights, open_checkpoint
from hf_warmscale.compat.transformers import short_scans

BARS = {"fp64 patched": 1e-11, "fp64": 5e-6, "fp32": 2e-4}
"""The largest |difference of a logit| that counts as exact; where a family cannot run, the bar is left out."""

FIRST_ORDINARY_TOKEN = 4


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a model of `config` in which every parameter and saved buffer was moved by N(0, 0.1), or less if wide."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for tensor in named_state(model).values():
            if tensor.is_floating_point():
                noise = noise_std(tensor.shape, most=0.1) * torch.randn(tensor.shape, dtype=torch.float64)
                tensor += noise.to(dtype)
    return model.eval()


def measure(source: PreTrainedModel, growth: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest difference of a logit under each of the bars, after a reload too, and the KL in bfloat16.

    Args:
        source (`PreTrainedModel`): in float64.
        growth (`Mapping[str, Any]`): arguments of `grow_from_pretrained`.
    """
    tokens = _tokens(source)
    grown, reloaded = _grow_and_reload(source, growth)
    row: dict[str, float] = {"claimed exact": grown.config.to_dict()["growth"]["exact"]}
    for name, model in {"": grown, ", reloaded": reloaded}.items():
        with suppress(RuntimeError):  # some families cast one factor of a product to float32
            row[f"fp64{name}"] = _difference(_logits(source, tokens), _logits(model, tokens))
        if all(parameter.dtype == source.dtype for parameter in source.parameters()):
            with suppress(RuntimeError), StayInFloat64():
                row[f"fp64 patched{name}"] = _difference(_logits(source, tokens), _logits(model, tokens))
    if "fp64 patched" not in row:  # some hold routers in float32 whatever the dtype
        double, model = _grow_in_float64(source, growth)
        with suppress(RuntimeError), StayInFloat64():
            row["fp64 patched, reloaded"] = _difference(_logits(double, tokens), _logits(model, tokens))
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "KL bf16")):
        small = copy.deepcopy(source).to(dtype)
        for name, model in zip(("", ", reloaded"), _grow_and_reload(small, growth), strict=True):
            before, after = _logits(small, tokens), _logits(model, tokens)
            row[label + name] = _difference(before, after) if dtype == torch.float32 else _divergence(before, after)
    return row


def is_exact(row: Mapping[str, float]) -> bool:
    """Tell whether a row is within all bars, before and after the reload."""
    return all(row.get(name + when, 0.0) <= bar for name, bar in BARS.items() for when in ("", ", reloaded"))


def _grow_and_reload(source: PreTrainedModel, growth: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        grown = grow_from_pretrained(source, **growth, verify=False)
        grown.save_pretrained(folder)
        reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=source.dtype)
    for model in (grown, reloaded):
        model.set_attn_implementation("eager")
        model.set_experts_implementation("eager")
    return grown.eval(), reloaded.eval()


def _grow_in_float64(source: PreTrainedModel, growth: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the source and its growth with routers in float64 too: streamed, since files hold any tensor in it."""
    double = copy.deepcopy(source).double()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "source"), Path(folder, "grown")
        double.save_pretrained(before)
        grow_checkpoint(before, after, **growth)
        grown = AutoModelForCausalLM.from_pretrained(after, dtype=torch.float64, attn_implementation="eager").double()
        grown.load_state_dict(dict(ModelWeights(open_checkpoint(after)).tensors()), strict=False)
    grown.set_experts_implementation("eager")
    return double, grown.eval()


def _tokens(model: PreTrainedModel) -> Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    random = torch.Generator().manual_seed(3)
    return torch.randint(FIRST_ORDINARY_TOKEN, int(vocabulary), (2, 12), generator=random)


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with short_scans(model.config):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.double()


def _difference(before: Tensor, after: Tensor) -> float:
    return float((before - after[..., : before.shape[-1]]).abs().max())


def _divergence(before: Tensor, after: Tensor) -> float:
    """Return KL(before || after), mean over positions, in nats."""
    after = after[..., : before.shape[-1]]
    divergence = nn.functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none")
    return max(float(divergence.sum(-1).mean()), 0.0)
