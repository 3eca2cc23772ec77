"""A checkpoint under the names of the model that loads it."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from transformers import PreTrainedModel

from hf_warmscale.checkpoints.conversion import Group, loading_groups, saving_groups, skeleton
from hf_warmscale.checkpoints.reader import Checkpoint
from hf_warmscale.checkpoints.tensors import TensorSpec
from hf_warmscale.checkpoints.writer import CheckpointWriter

FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""Dtypes of plain weights. 8-bit and integer tensors are quantized and meaningless without their scales."""

BUFFERS_OF_OLD_FILES = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Old checkpoints store these buffers; current models recompute them. Families name more of their own."""


class ModelWeights:
    """Read a checkpoint by the names of `state_dict()`, one tensor at a time, as `from_pretrained` would name them.

    Of tied names only the source is there (`model.embed_tokens.weight`, not `lm_head.weight`). Stored tensors that the
    model has no place for are left out, with a warning that names one.

    Args:
        checkpoint (`Checkpoint`): the opened checkpoint.

    Raises:
        ValueError: if a tensor of the model is missing, of another shape than the config says, or stored as integers
            or in 8 bits, the checkpoint is quantized, or it stores two different tensors under names that its config
            ties.

    Example:
        >>> weights = ModelWeights(open_checkpoint("mistralai/Mixtral-8x7B-v0.1"))
        >>> weights.specs["model.layers.0.mlp.experts.gate_up_proj"]
        TensorSpec(shape=(8, 28672, 4096), dtype=torch.bfloat16)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        _refuse_quantized(checkpoint)
        self.model = skeleton(checkpoint.config)
        self._groups: dict[str, Group] = {}
        stored: dict[str, TensorSpec] = {}
        for group in loading_groups(checkpoint.specs, self.model):
            for name, spec in group.result_specs(checkpoint.specs, self.model).items():
                self._groups[name], stored[name] = group, spec
        self._warn_of_leftovers()
        self._drop_tied(stored)
        # One group can make several tensors of the model. The results of the last group are kept, so that reading the
        # names in order does not convert it once per name.
        self._last: tuple[Group, dict[str, torch.Tensor]] | None = None
        self.specs: Mapping[str, TensorSpec] = self._checked(stored)

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the names in the files that a tensor of the model is made of."""
        return tuple(self._groups[name].sources)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor of the model: a view of the mapped file unless transformers converts it on loading.

        Raises:
            ValueError: if the model has no such tensor.
        """
        if name not in self.specs:
            raise ValueError(f"The model in {self.checkpoint.source.name} has no tensor {name}.")
        group = self._groups[name]
        if group.pattern is None:
            (source,) = group.sources
            return self.checkpoint.tensor(source)
        if self._last is None or self._last[0] is not group:
            read = {source: self.checkpoint.tensor(source) for source in group.sources}
            self._last = group, group.convert(read, self.model)
        return self._last[1][name]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor of the model with its name."""
        for name in self.specs:
            yield name, self.tensor(name)

    def _warn_of_leftovers(self) -> None:
        """Warn of tensors that `from_pretrained` would call unexpected; refuse blocks or experts beyond the config."""
        used = {source for group in self._groups.values() for source in group.sources}
        ignored = [*BUFFERS_OF_OLD_FILES, *(self.model._keys_to_ignore_on_load_unexpected or ())]
        left = [
            name
            for name in self.checkpoint.specs
            if name not in used and not any(re.search(pattern, name) for pattern in ignored)
        ]
        # Names that differ from a used one in a number alone are weights, of a block or expert that the config does
        # not count. Leaving them out with a warning would cut the model silently.
        known = {_numberless(name) for name in used}
        for name in left:
            if _numberless(name) in known:
                raise ValueError(
                    f"{self.checkpoint.source.name} holds {name}, and its config.json says fewer blocks or experts;"
                    " correct their number there."
                )
        if left:
            warnings.warn(
                f"{len(left)} tensors of {self.checkpoint.source.name} do not belong to the model of its config.json "
                f"and are left out, among them {left[0]}.",
                stacklevel=2,
            )

    def _drop_tied(self, stored: dict[str, TensorSpec]) -> None:
        for tied, source in self.model.all_tied_weights_keys.items():
            if tied not in stored:
                continue
            if source not in stored:  # saved under the other name; transformers accepts it too
                self._groups[source], stored[source] = self._groups[tied], stored[tied]
            elif not torch.equal(self._first(tied), self._first(source)):
                raise ValueError(
                    f"The config of {self.checkpoint.source.name} ties {tied} to {source}, but their values differ;"
                    " set tie_word_embeddings to false in its config.json."
                )
            del self._groups[tied], stored[tied]

    def _first(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(next(iter(self._groups[name].sources)))

    def _checked(self, stored: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Return the specs in the model's order, all shapes and kinds of number compared with the model."""
        expected = {name: TensorSpec.of(tensor) for name, tensor in self.model.state_dict().items()}
        for name in expected.keys() - self.model.all_tied_weights_keys.keys() - stored.keys():
            raise ValueError(f"The checkpoint {self.checkpoint.source.name} lacks the tensor {name}.")
        for name, spec in stored.items():
            if spec.shape != expected[name].shape:
                raise ValueError(
                    f"The tensor {name} of {self.checkpoint.source.name} has the shape {list(spec.shape)},"
                    f" its config.json says {list(expected[name].shape)}."
                )
            if expected[name].dtype.is_floating_point and spec.dtype not in FLOATS:
                raise ValueError(
                    f"The tensor {name} of {self.checkpoint.source.name} is stored as {spec}, which is a "
                    "quantized dtype; use a checkpoint in float32, bfloat16, float16 or float64."
                )
        return {name: stored[name] for name in expected if name in stored}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse a quantized checkpoint, and a config whose entry was left behind when it was dequantized."""
    if is_quantized(checkpoint):
        raise ValueError(f"The checkpoint {checkpoint.source.name} is quantized; dequantize and save it first.")
    if getattr(checkpoint.config, "quantization_config", None) is not None:
        raise ValueError(
            f"The config.json of {checkpoint.source.name} has a quantization_config, but its weights are not"
            " quantized; remove that entry."
        )


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Tell whether the config says how the weights are quantized, and some of them are."""
    declared = getattr(checkpoint.config, "quantization_config", None) is not None
    return declared and not all(spec.dtype in FLOATS for spec in checkpoint.specs.values())


def _numberless(name: str) -> str:
    """Return a name without the numbers of blocks and experts: all tensors of one kind have the same."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


class ModelWriter:
    """Write a checkpoint by the names of `state_dict()`, in the layout that `save_pretrained` gives its files.

    Memory holds one tensor, or the few that transformers converts together. Use it inside a `staged_directory`.

    Args:
        folder (`Path`): an existing folder.
        model (`PreTrainedModel`): the target, usually `skeleton(config)`.
        specs (`Mapping[str, TensorSpec]`): every tensor of the model; tied names are not written.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.

    Raises:
        ValueError: as `CheckpointWriter`.

    Example:

    ```python
    >>> weights = ModelWeights(open_checkpoint("small"))
    >>> with staged_directory("copy") as folder, ModelWriter(folder, weights.model, weights.specs) as writer:
    ...     for name in weights.specs:
    ...         writer.write(name, weights.tensor(name))
    ```
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        specs: Mapping[str, TensorSpec],
        *,
        max_shard_size: int | str = "5GB",
    ) -> None:
        self.model = model
        self._group = {name: group for group in saving_groups(model) for name in group.sources}
        self.specs = {name: specs[name] for name in self._group}
        self._waiting: dict[str, dict[str, torch.Tensor]] = {}
        stored: dict[str, TensorSpec] = {}
        for group in self._group.values():
            stored.update(group.result_specs(self.specs, model))
        self._writer = CheckpointWriter(folder, stored, max_shard_size=max_shard_size)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor of the model.

        Raises:
            ValueError: if the model has no such tensor, or shape or dtype differ from what was announced.
        """
        if name not in self.specs:
            raise ValueError(f"The tensor {name} was not announced.")
        if TensorSpec.of(tensor) != self.specs[name]:
            raise ValueError(f"The tensor {name} is {TensorSpec.of(tensor)}, not {self.specs[name]} as announced.")
        group = self._group[name]
        arrived = self._waiting.setdefault(group.key, {})
        arrived[name] = tensor
        # Tensors may arrive in any order; a group is converted, and its memory freed, when its last one is here.
        if arrived.keys() == group.sources.keys():
            for stored, value in group.convert(self._waiting.pop(group.key), self.model).items():
                self._writer.write(stored, value)

    def __enter__(self) -> "ModelWriter":
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
