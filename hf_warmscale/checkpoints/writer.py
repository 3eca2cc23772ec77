"""Write a checkpoint one tensor at a time: the headers first, then every tensor straight to its place."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from hf_warmscale.checkpoints.files import INDEX_FILE
from hf_warmscale.checkpoints.tensors import SAFETENSORS_DTYPES, TensorSpec, tensor_bytes
from hf_warmscale.staging import write_json

DTYPE_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
LENGTH_BYTES = 8


class CheckpointWriter:
    """Write safetensors shards whose tensors arrive in any order; memory holds one tensor, never a shard.

    Use it inside a `staged_directory`. A file is not readable until the writer is complete: the length of its
    header, the first eight bytes, is written last.

    Args:
        folder (`Path`): an existing folder.
        specs (`Mapping[str, TensorSpec]`): every tensor that will be written.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`; a larger tensor gets a file of its own.

    Raises:
        ValueError: if a dtype cannot be stored, or a tensor is unknown, written twice, missing, or not as announced.
        OSError: if the disk is full.

    Example:
        >>> with staged_directory("out") as folder, CheckpointWriter(folder, checkpoint.specs) as writer:
        ...     for name, tensor in checkpoint.tensors():
        ...         writer.write(name, tensor)
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], *, max_shard_size: int | str = "5GB") -> None:
        self.specs = dict(specs)
        self._missing = set(self.specs)
        split = split_state_dict_into_shards_factory(
            self.specs,
            get_storage_size=lambda spec: spec.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        _check_space(folder, split.metadata["total_size"])
        self._files = [
            _ShardFile(folder / file, {name: self.specs[name] for name in names})
            for file, names in split.filename_to_tensors.items()
        ]
        self._home = {name: file for file in self._files for name in file.offsets}
        if split.is_sharded:
            parameters = sum(spec.numel for spec in self.specs.values())
            metadata = {"total_parameters": parameters, **split.metadata}
            write_json(
                folder / INDEX_FILE,
                {"metadata": metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))},
            )

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor to its place in the file.

        Raises:
            ValueError: if it was not announced, was written before, or differs in shape or dtype.
        """
        if name not in self._missing:
            state = "was written before" if name in self.specs else "was not announced"
            raise ValueError(f"The tensor {name} {state}.")
        if TensorSpec.of(tensor) != self.specs[name]:
            raise ValueError(f"The tensor {name} is {TensorSpec.of(tensor)}, not {self.specs[name]} as announced.")
        self._home[name].write(name, tensor)
        self._missing.remove(name)

    def complete(self) -> None:
        """Make the files readable.

        Raises:
            ValueError: if a tensor is missing.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, {min(self._missing)} among them.")
        for file in self._files:
            file.complete()

    def close(self) -> None:
        """Close the files; they stay unreadable unless `complete` was called."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.complete()
        finally:
            self.close()


class _ShardFile:
    """One safetensors file of announced tensors."""

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        header, self.offsets = _layout(specs)
        self._length = len(header).to_bytes(LENGTH_BYTES, "little")
        self._start = LENGTH_BYTES + len(header)
        self._file = path.open("xb", buffering=0)
        # The final length at once, so that tensors can be written in any order.
        self._file.truncate(self._start + sum(spec.nbytes for spec in specs.values()))
        self._write_at(LENGTH_BYTES, memoryview(header))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self._write_at(self._start + self.offsets[name], tensor_bytes(tensor))

    def complete(self) -> None:
        self._write_at(0, memoryview(self._length))

    def close(self) -> None:
        self._file.close()

    def _write_at(self, position: int, data: memoryview) -> None:
        while data:
            # Linux writes at most 2 GiB per call, so a large tensor takes several.
            written = os.pwrite(self._file.fileno(), data, position)
            position, data = position + written, data[written:]


def _check_space(folder: Path, needed: int) -> None:
    """Refuse a write that would fill the disk before it begins."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"The weights need {needed / 1e9:.3g} GB and the disk of {folder.parent} has {free / 1e9:.3g} GB left;"
            " free some space or name another disk."
        )


def _layout(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the header (padded with blanks to a multiple of 8 bytes) and the offset of every tensor's data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    # The widest dtypes first, so that every tensor is aligned to its dtype.
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):
        if spec.dtype not in DTYPE_CODES:
            raise ValueError(f"The tensor {name} has the dtype {spec.dtype}, which safetensors cannot store.")
        offsets[name], end = end, end + spec.nbytes
        span = [offsets[name], end]
        entries[name] = {"dtype": DTYPE_CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % LENGTH_BYTES), offsets
