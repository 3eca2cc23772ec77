"""Put a weighted sum of stored checkpoints into a live model, in place, writing no file."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.checkpoints import Checkpoint
from hf_warmscale.merging.weighted_sum import weighted_sum_

CheckpointWeights = Sequence[float] | Mapping[str, Sequence[float]]
"""One number a checkpoint; or that for every parameter, by its name in the live model."""


class Combiner(Protocol):
    """What turns weights into a model."""

    model: PreTrainedModel

    def combine(self, weights: CheckpointWeights) -> None:
        """Overwrite the live model."""
        ...


class CheckpointCombiner:
    """A live model whose weights are overwritten, again and again, by weighted sums of stored checkpoints.

    The checkpoints stay in their files, mapped into memory; sums accumulate in float32 (float64 in a float64 model);
    a tied weight is summed once. Integer buffers are those of the last checkpoint.

    A family whose files name or shape tensors differently from its live model (fused experts) is converted on
    loading by transformers: its checkpoints are then held in memory, one model each.

    Args:
        model (`PreTrainedModel`): its weights are replaced; its dtype and device stay.
        checkpoints (`Sequence[Checkpoint]`): of the same architecture and sizes, the oldest first.

    Raises:
        ValueError: if a checkpoint does not fit the model.

    Example:

    ```python
    >>> checkpoints = [open_checkpoint(f"run/checkpoint-{step}") for step in (800, 900, 1000)]
    >>> model = AutoModelForCausalLM.from_pretrained("run/checkpoint-1000")
    >>> CheckpointCombiner(model, checkpoints).combine(lawa_weights(3))
    ```
    """

    def __init__(self, model: PreTrainedModel, checkpoints: Sequence[Checkpoint]) -> None:
        self.model = model
        live = _distinct_tensors(model)
        stored = [_stored_tensors(model, live, checkpoint) for checkpoint in checkpoints]
        self._targets = {name: (target, [tensors[name] for tensors in stored]) for name, target in live.items()}

    def combine(self, weights: CheckpointWeights) -> None:
        """Set every parameter to the weighted sum of its stored values.

        Args:
            weights (`CheckpointWeights`): one number a checkpoint, or that for every parameter by name.
        """
        with torch.no_grad():
            for name, (target, sources) in self._targets.items():
                if target.is_floating_point():
                    weighted_sum_(target, sources, weights[name] if isinstance(weights, Mapping) else weights)
                else:
                    target.copy_(sources[-1])


def _distinct_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of a model with every tied tensor once, under its first name."""
    distinct: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        distinct.setdefault(id(tensor), (name, tensor.detach()))
    return dict(distinct.values())


def _stored_tensors(model: PreTrainedModel, live: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    stored = _mapped_tensors(model, live, checkpoint) or _loaded_tensors(checkpoint)
    for name, target in live.items():
        if name not in stored or stored[name].shape != target.shape:
            shape = list(stored[name].shape) if name in stored else "absent"
            raise ValueError(
                f"The tensor {name} is {shape} in {checkpoint.source.name} and {list(target.shape)} in the model; "
                "merge checkpoints of one architecture and size."
            )
    return stored


def _mapped_tensors(
    model: PreTrainedModel, live: Mapping[str, Tensor], checkpoint: Checkpoint
) -> dict[str, Tensor] | None:
    """Views of the file under the live names, or `None` if its names are not those of the live model."""
    aliases: dict[str, str] = {name: name for name in live}
    for alias, name in model.all_tied_weights_keys.items():
        if name not in checkpoint.specs and alias in checkpoint.specs:
            aliases[name] = alias
    if not set(aliases.values()) <= checkpoint.specs.keys():
        return None
    return {name: checkpoint.tensor(stored) for name, stored in aliases.items()}


def _loaded_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint.folder, output_loading_info=True)
    model, report = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    if report["missing_keys"]:
        raise ValueError(f"The checkpoint {checkpoint.source.name} lacks the tensor {min(report['missing_keys'])}.")
    return _distinct_tensors(model)
