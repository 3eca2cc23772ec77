"""What is merged: stored checkpoints of a whole model, behind one live model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import Checkpoint, ModelWeights
from hf_warmscale.merging.combine import CheckpointCombiner, CheckpointWeights, Combiner
from hf_warmscale.merging.inputs import MergeInput, check_finite, describe_input, open_inputs, training_step
from hf_warmscale.merging.merge import write_merged
from hf_warmscale.merging.methods import linear


class MergeSource(Combiner, Protocol):
    """Several trained models that a search weighs against each other."""

    noun: str
    steps: list[int | None]

    def __len__(self) -> int:
        """The number of checkpoints or adapters."""
        ...

    def check(self) -> list[MergeInput]:
        """Read everything once: refuse NaN, return what is recorded of each."""
        ...

    def base(self) -> MergeInput | None:
        """Return what is recorded of the model that they are adapters of, if they are."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the merged model will have."""
        ...

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        """Write a merge as a stock model into an existing folder."""
        ...


class CheckpointSource:
    """Checkpoints of one model, the oldest first.

    Args:
        checkpoints (`Sequence[str | PathLike]`): folders or Hub ids.
        device (`torch.device`): of the live model.

    Raises:
        ValueError: if they do not belong together.
        FileNotFoundError: if one is not there.
    """

    noun = "checkpoint"

    def __init__(self, checkpoints: Sequence[str | os.PathLike[str]], device: torch.device) -> None:
        self.checkpoints, _ = open_inputs(checkpoints)
        self.steps = [training_step(checkpoint) for checkpoint in self.checkpoints]
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self._last.folder, trust_remote_code=False)
        torch.nn.Module.to(self.model, device)
        self._combiner = CheckpointCombiner(self.model, self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)

    @property
    def _last(self) -> Checkpoint:
        return self.checkpoints[-1]

    def check(self) -> list[MergeInput]:
        """Read everything once: refuse NaN, return what is recorded of each.

        Raises:
            ValueError: naming the checkpoint and the tensor that holds NaN or an infinity.
        """
        for checkpoint in self.checkpoints:
            check_finite(checkpoint)
        return [describe_input(checkpoint) for checkpoint in self.checkpoints]

    def base(self) -> None:
        """Return nothing: a checkpoint is a whole model."""

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
        by_name = _by_stored_name(weights, self._last)

        def merge(name: str, tensors: Sequence[Tensor]) -> Tensor:
            return linear(tensors, by_name[name])

        write_merged(self.checkpoints, folder, merge, max_shard_size=max_shard_size)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        ValueError: if there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenizer; pass tokenizer=...") from error
    return tokenizer


def _by_stored_name(weights: CheckpointWeights, checkpoint: Checkpoint) -> dict[str, Sequence[float]]:
    """Weights by the names in the files, which transformers may rename, split or fuse on loading."""
    if not isinstance(weights, Mapping):
        return dict.fromkeys(checkpoint.specs, weights)
    model = ModelWeights(checkpoint)
    return {stored: weights[name] for name in model.specs for stored in model.sources(name)}
