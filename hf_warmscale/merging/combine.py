"""Put a weighted sum of stored checkpoints into a live model, in place, without writing a file."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import Checkpoint, ModelWeights
from hf_warmscale.merging.weighted_sum import weighted_sum_

CheckpointWeights = Sequence[float] | Mapping[str, Sequence[float]]
"""One number per checkpoint; or one per checkpoint for every parameter, by its name in the live model."""


class Combiner(Protocol):
    """A live model that can become any combination of several given models.

    This is all that a search needs in order to try a point: its space turns the point into weights, and `combine`
    applies them. The K models may be checkpoints, whose parameters are summed (`CheckpointCombiner`), adapters of one
    base, or the members of a composite model, whose log-probabilities are summed (then `combine` only sets K numbers).
    A weight of 1 for one of them, and 0 for the others, must give that model alone.

    Example:

    ```python
    >>> checkpoints = [open_checkpoint(f"run/checkpoint-{step}") for step in (800, 900)]
    >>> combiner: Combiner = CheckpointCombiner(model, checkpoints)
    >>> combiner.combine(uniform_weights(2))
    ```
    """

    model: PreTrainedModel

    def combine(self, weights: CheckpointWeights) -> None:
        """Make `model` the combination with these weights."""
        ...


class CheckpointCombiner:
    """A live model whose weights are overwritten, again and again, by weighted sums of stored checkpoints.

    The checkpoints stay in their files, mapped into memory. Sums accumulate in float32 (float64 in a float64 model); a
    tied weight is summed once. Integer buffers are those of the last checkpoint. Tensors that transformers converts
    on loading (fused experts) are converted anew for each sum, so that no copy of a checkpoint stays in memory.

    Args:
        model (`PreTrainedModel`): its weights are replaced; its dtype and device stay.
        checkpoints (`Sequence[Checkpoint | ModelWeights]`): of the same architecture and sizes, the oldest first.

    Raises:
        ValueError: if a checkpoint does not fit the model.

    Example:

    ```python
    >>> checkpoints = [open_checkpoint(f"run/checkpoint-{step}") for step in (800, 900, 1000)]
    >>> model = AutoModelForCausalLM.from_pretrained("run/checkpoint-1000")
    >>> CheckpointCombiner(model, checkpoints).combine(lawa_weights(3))
    ```
    """

    def __init__(self, model: PreTrainedModel, checkpoints: Sequence[Checkpoint | ModelWeights]) -> None:
        self.model = model
        self._stored = [ModelWeights(each) if isinstance(each, Checkpoint) else each for each in checkpoints]
        # A tied name is a second view of one tensor, and the stored weights do not have it.
        tied = model.all_tied_weights_keys
        self._live = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        for weights in self._stored:
            _check_fits(weights, self._live)

    def combine(self, weights: CheckpointWeights) -> None:
        """Set every parameter to the weighted sum of its stored values.

        Args:
            weights (`CheckpointWeights`): one number per checkpoint; or that for every parameter, by name.
        """
        with torch.no_grad():
            for name, target in self._live.items():
                sources = [stored.tensor(name) for stored in self._stored]
                # A combination always starts from the stored tensors, never from the live ones: errors cannot add up
                # over the trials.
                if target.is_floating_point():
                    weighted_sum_(target, sources, weights[name] if isinstance(weights, Mapping) else weights)
                else:
                    target.copy_(sources[-1])


def _check_fits(weights: ModelWeights, live: Mapping[str, Tensor]) -> None:
    for name, target in live.items():
        shape = list(weights.specs[name].shape) if name in weights.specs else "absent"
        if shape != list(target.shape):
            raise ValueError(
                f"The tensor {name} is {shape} in {weights.checkpoint.source.name} and {list(target.shape)} in the "
                "model; merge checkpoints of one architecture and size."
            )
