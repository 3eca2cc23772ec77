"""Growing and merging models that are on the device."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from hf_warmscale import grow_from_pretrained, merge_checkpoints
from hf_warmscale.checkpoints import open_checkpoint, save_model
from hf_warmscale.merging import CheckpointCombiner
from hf_warmscale.resize import GrowthReceipt
from tests.gpu.registry import Figures, Machine, check, require
from tests.gpu.stages import llama, placed, shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = (0.5, 0.3, 0.2)


@check
def growing(machine: Machine, figures: Figures) -> None:
    """A growth keeps the logits, the device and the dtype, and has the bits of the growth on the CPU."""
    for name, dtype in DTYPES.items():
        source = llama(shape(machine), dtype=dtype).eval()
        expected, found = grown(source), grown(placed(source, machine))
        receipt: Any = getattr(found, GrowthReceipt.attribute)
        figures[name] = seen = receipt["verification"]
        require((found.device, found.dtype) == (machine.device, dtype), f"It is {found.dtype} on {found.device}.")
        kept = receipt["exact"] and seen["max_abs_logit_difference"] <= seen["rounding"]
        require(kept, f"In {name} a logit moved by {seen['max_abs_logit_difference']:.2g}.")
        there = found.state_dict()
        other = [key for key, tensor in expected.state_dict().items() if not torch.equal(there[key].cpu(), tensor)]
        require(not other, f"Other bits than on the CPU: {other}.")


def grown(source: PreTrainedModel) -> PreTrainedModel:
    """Return twice the width and one more block."""
    config: Any = source.config
    sizes: Any = {"hidden_size": 2 * config.hidden_size, "num_hidden_layers": config.num_hidden_layers + 1}
    return grow_from_pretrained(source, depth="identity", **sizes)


@check
def merging(machine: Machine, figures: Figures) -> None:
    """A merge in a live model on the device, and one of files, have the weights of exact arithmetic up to rounding."""
    for name, dtype in DTYPES.items():
        models = [llama(shape(machine), seed=seed, dtype=dtype) for seed in range(len(WEIGHTS))]
        with TemporaryDirectory() as folder:
            stored = [Path(folder, str(number)) for number in range(len(WEIGHTS))]
            for model, path in zip(models, stored, strict=True):
                save_model(model, path)
            live = placed(models[0], machine)
            CheckpointCombiner(live, [open_checkpoint(path) for path in stored]).combine(WEIGHTS)
            merge_checkpoints(stored, Path(folder, "merged"), weights=WEIGHTS)
            loaded = LlamaForCausalLM.from_pretrained(Path(folder, "merged"), dtype=dtype)
        require(live.device == machine.device, f"The merged model is on {live.device}.")
        figures[name] = {"live": roundings(live, models), "files": roundings(loaded, models)}
        require(
            all(error <= 2 for error in figures[name].values()),
            f"In {name} a merged weight is off by {figures[name]} roundings.",
        )


def roundings(merged: PreTrainedModel, models: Sequence[PreTrainedModel]) -> float:
    """Return the largest error of a merged weight, in roundings of the sum of the sizes of its terms."""
    states, errors = [model.state_dict() for model in models], []
    for name, tensor in merged.state_dict().items():
        terms = torch.stack([weight * state[name].double() for weight, state in zip(WEIGHTS, states, strict=True)])
        scale = terms.abs().sum(0) * torch.finfo(tensor.dtype).eps
        errors.append(((tensor.cpu().double() - terms.sum(0)).abs() / scale).max())
    return float(torch.stack(errors).max())
