"""One file of weights, mapped into memory: nothing is read before a tensor is used."""

import pickle
import zipfile
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from hf_warmscale.checkpoints.tensors import SAFETENSORS_DTYPES, TensorSpec

LFS_POINTER = b"version https://git-lfs"
"""The first bytes of the text file that Git LFS leaves in place of a large file."""


class Shard(Protocol):
    """A file of named tensors."""

    path: Path
    specs: dict[str, TensorSpec]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor that is a private view of the mapped file."""
        ...


class SafetensorsShard:
    """A safetensors file. Opening it reads the header and checks it against the length of the file.

    Args:
        path (`Path`): the file.

    Raises:
        ValueError: if the file is truncated, its header is corrupt, or a dtype is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is {_damage(path, error)}; copy or download it again.") from error
        self.specs = {name: self._spec(name) for name in self._file.offset_keys()}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor that is a private view of the mapped file."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def _spec(self, name: str) -> TensorSpec:
        view = self._file.get_slice(name)
        code = view.get_dtype()
        if code not in SAFETENSORS_DTYPES:
            raise ValueError(f"The tensor {name} in {self.path} has the dtype {code}, which torch does not have.")
        return TensorSpec(tuple(view.get_shape()), SAFETENSORS_DTYPES[code])


class PickledShard:
    """A file of `torch.save`, read with `weights_only=True`: no code in it runs.

    Args:
        path (`Path`): the file.

    Raises:
        ValueError: if it is corrupt or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Files written before torch 1.6 are not zip archives, so they cannot be memory-mapped.
            content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is corrupt or holds more than tensors; copy or download it again.") from error
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise ValueError(f"{path} does not hold a dictionary of tensors; save the model as safetensors.")
        self._tensors: dict[str, torch.Tensor] = content
        self.specs = {name: TensorSpec.of(tensor) for name, tensor in content.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor that is a private view of the mapped file."""
        return self._tensors[name]


def _damage(path: Path, error: SafetensorError) -> str:
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        return "an empty file"
    if start == LFS_POINTER:
        return "a Git LFS pointer, not the weights; run git lfs pull"
    return f"truncated or corrupt ({str(error).removeprefix('Error while deserializing header: ')})"
