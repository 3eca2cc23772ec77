"""What is merged: several trained models behind one live model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import Checkpoint, load_model, load_tokenizer
from hf_warmscale.merging.combine import CheckpointCombiner, CheckpointWeights, Combiner
from hf_warmscale.merging.inputs import MergeInput, check_finite, describe_input, open_inputs, positions
from hf_warmscale.merging.merge import write_merged
from hf_warmscale.merging.methods import linear


class MergeSource(Combiner, Protocol):
    """Several trained models whose combination is searched.

    To try a point a search needs no more than a `Combiner`; the rest is for its record and its result. Any object that
    has these methods can be searched with `search_merge`, for example the members of a composite model.

    Example:

    ```python
    >>> source: MergeSource = MemberSource(model)  # of an emulated model with one tuned model
    >>> len(source), source.kind
    (3, 'member')
    ```
    """

    kind: str
    """A singular noun, for the verdict: `"checkpoint"`."""
    span: tuple[int | None, int | None]
    """The training progress of the first and the last model, in one unit; `None` where it is unknown."""

    def __len__(self) -> int:
        """Return the number of models."""
        ...

    def check(self) -> list[MergeInput]:
        """Read everything once: refuse NaN, and return the record of each model."""
        ...

    def base(self) -> MergeInput | None:
        """Return the record of a base that all of them share, such as that of adapters."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the result will have."""
        ...

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        """Write a combination as a model into an existing folder."""
        ...


class CheckpointSource:
    """Checkpoints of one model, the oldest first.

    Args:
        checkpoints (`Sequence[str | PathLike]`): folders or Hub ids.
        device (`torch.device`): of the live model.

    Raises:
        ValueError: if they cannot be merged; see `open_inputs`.
        FileNotFoundError: if one does not exist.
    """

    kind = "checkpoint"

    def __init__(self, checkpoints: Sequence[str | os.PathLike[str]], device: torch.device) -> None:
        self._stored, _ = open_inputs(checkpoints)
        self.checkpoints: list[Checkpoint] = [weights.checkpoint for weights in self._stored]
        self.span = positions(self.checkpoints[0], self._last)[:2]
        self.model: PreTrainedModel = load_model(self._last.folder, finite=False)  # `check` reads all of them
        torch.nn.Module.to(self.model, device)
        self._combiner = CheckpointCombiner(self.model, self._stored)

    def __len__(self) -> int:
        return len(self.checkpoints)

    @property
    def _last(self) -> Checkpoint:
        return self.checkpoints[-1]

    def check(self) -> list[MergeInput]:
        """Read everything once: refuse NaN, and return the record of each checkpoint.

        Raises:
            ValueError: naming the checkpoint and the tensor that holds NaN or an infinity.
        """
        for checkpoint in self.checkpoints:
            check_finite(checkpoint)
        return [describe_input(checkpoint) for checkpoint in self.checkpoints]

    def base(self) -> None:
        """Return `None`: a checkpoint is a whole model."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the last checkpoint.

        Raises:
            ValueError: if it has none.
        """
        return load_tokenizer(self._last.folder)

    def combine(self, weights: CheckpointWeights) -> None:
        """Overwrite the live model with a merge."""
        self._combiner.combine(weights)

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        """Write a merge as a stock model into an existing folder."""

        def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
            # In float64, unlike the float32 sums of the trials: what is written may differ from what was scored in the
            # last bit.
            return linear(tensors, weights[name] if isinstance(weights, Mapping) else weights)

        write_merged(self._stored, folder, merge, max_shard_size=max_shard_size)
