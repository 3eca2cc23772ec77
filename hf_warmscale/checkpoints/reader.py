"""Read a checkpoint lazily: names, shapes and dtypes at once, data one tensor at a time."""

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from hf_warmscale.checkpoints.conversion import skeleton
from hf_warmscale.checkpoints.files import CONFIG_FILE, folder_kind
from hf_warmscale.checkpoints.shards import PickledShard, SafetensorsShard, Shard
from hf_warmscale.checkpoints.source import Source, find_source, weight_files
from hf_warmscale.checkpoints.tensors import TensorSpec, combine_digests, refuse_non_finite, tensor_digest
from hf_warmscale.refusals import names_as_typed


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, allow_pickle: bool = False
) -> "Checkpoint":
    """Open a checkpoint without reading its data.

    Args:
        source (`str` or `PathLike`): a folder or a Hub id.
        revision (`str`, *optional*): a branch, a tag or a commit of the Hub id.
        allow_pickle (`bool`): accept `pytorch_model.bin` too (loaded with `weights_only=True`).

    Raises:
        FileNotFoundError: if there is no such checkpoint, or a shard is missing.
        ValueError: if a file is truncated or corrupt, shards and index disagree, or the weights are pickled.

    Example:
        >>> checkpoint = open_checkpoint("HuggingFaceTB/SmolLM2-135M")
        >>> checkpoint.specs["model.embed_tokens.weight"]
        TensorSpec(shape=(49152, 576), dtype=torch.bfloat16)
        >>> rows = checkpoint.tensor("model.embed_tokens.weight")[:16]  # reads 16 rows
    """
    found = find_source(source, revision=revision, allow_pickle=allow_pickle)
    with names_as_typed():
        return Checkpoint(found, _open_shards(found.folder, allow_pickle))


class Checkpoint:
    """The weights, config and identity of a saved model. Made by `open_checkpoint`.

    Args:
        source (`Source`): where it is and what the user called it.
        shards (`list[Shard]`): its files, opened.

    Example:

    ```python
    >>> checkpoint = open_checkpoint("small")
    >>> checkpoint.config.model_type, checkpoint.tensor("model.norm.weight").shape
    ('llama', torch.Size([32]))
    ```
    """

    def __init__(self, source: Source, shards: list[Shard]) -> None:
        self.source = source
        self._shards = shards
        self._home = {name: shard for shard in shards for name in shard.specs}
        self._digests: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.source.name!r}, {len(self.specs)} tensors, {self.nbytes:,} bytes)"

    @property
    def folder(self) -> Path:
        """The folder that holds its files."""
        return self.source.folder

    @property
    def files(self) -> list[Path]:
        """Its weight files."""
        return [shard.path for shard in self._shards]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The shape and dtype of every stored tensor, in the order of the files."""
        return {name: shard.specs[name] for name, shard in self._home.items()}

    @property
    def nbytes(self) -> int:
        """The size of all tensors, in bytes."""
        return sum(spec.nbytes for spec in self.specs.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as a private view of the mapped file: a slice of it reads only that slice.

        Raises:
            ValueError: if the checkpoint has no such tensor.
        """
        if name not in self._home:
            raise ValueError(f"The checkpoint {self.source.name} has no tensor {name}.")
        return self._home[name].tensor(name)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every stored tensor with its name, in the order of the files."""
        for name in self._home:
            yield name, self.tensor(name)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's config.

        Raises:
            FileNotFoundError: if there is no `config.json`.
            ValueError: if this transformers does not know it.
        """
        with names_as_typed():
            return read_config(self.folder)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """For each name that shares its tensor with another, the name that is stored (`lm_head` -> embedding)."""
        return dict(skeleton(self.config).all_tied_weights_keys)

    def check_specs(self, expected: Mapping[str, TensorSpec]) -> None:
        """Compare names, shapes and dtypes with expected ones; tied names may be absent.

        Raises:
            ValueError: if a tensor is missing, unexpected, or has another shape or dtype; it names the first one.
        """
        for name, spec in expected.items():
            if name not in self.specs:
                raise ValueError(f"The checkpoint {self.source.name} lacks the tensor {name}.")
            if self.specs[name] != spec:
                raise ValueError(
                    f"The tensor {name} of {self.source.name} is {self.specs[name]}; expected was {spec}."
                )
        for name in self.specs:
            if name not in expected:
                raise ValueError(f"The checkpoint {self.source.name} holds the tensor {name}, which is not expected.")

    def check_finite(self) -> None:
        """Read all tensors once and refuse NaN and infinities.

        Raises:
            ValueError: naming the tensor and the checkpoint.
        """
        for name, tensor in self.tensors():
            refuse_non_finite(f"{name} of {self.source.name}", tensor)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a tensor's bytes. It is computed once; ask while the tensor is still in memory."""
        if name not in self._digests:
            self._digests[name] = tensor_digest(self.tensor(name))
        return self._digests[name]

    def content_hash(self) -> str:
        """Return a hash of all names, shapes, dtypes and data, independent of sharding and metadata.

        SHA-256 over the lines `name dtype[shape] digest`, sorted by name. Only tensors that have no digest yet are
        read.
        """
        return combine_digests((name, spec, self.digest(name)) for name, spec in self.specs.items())


def read_config(path: Path) -> PreTrainedConfig:
    """Return the config in a folder, or in a JSON file.

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
        ValueError: if it is damaged, or this transformers does not know it.
    """
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG_FILE}; {folder_kind(path)}.")
    named = f"The config.json of {path}" if path.is_dir() else str(path)
    try:
        # Where trust_remote_code is not given, transformers asks, and a "y" on a terminal runs the folder's code.
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a family's config class may raise anything on values that it does not expect
        raise ValueError(f"{named} cannot be used: {_first_sentence(error)}") from error
    return config


def _first_sentence(error: Exception) -> str:
    """Return the reason that an error of transformers gives: its cause where a validator sets one, and no advice."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return f"{text.partition('. ')[0].rstrip(' .:')}."


def _open_shards(folder: Path, allow_pickle: bool) -> list[Shard]:
    shards: list[Shard] = []
    home: dict[str, Path] = {}
    for path, promised in weight_files(folder, allow_pickle=allow_pickle).items():
        shard: Shard = SafetensorsShard(path) if path.suffix == ".safetensors" else PickledShard(path)
        for name in shard.specs:
            if name in home:
                raise ValueError(f"The tensor {name} is in {home[name].name} and in {path.name} of {folder}.")
            home[name] = path
        for name in promised or ():
            if name not in shard.specs:
                raise ValueError(f"The index of {folder} places the tensor {name} in {path.name}, which lacks it.")
        shards.append(shard)
    return shards
