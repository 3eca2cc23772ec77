"""Tensor metadata that is known before the data is read, and checks and hashes of the data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import torch

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""The dtype codes of a safetensors header."""


@dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of a tensor.

    Args:
        shape (`tuple[int, ...]`): as in `Tensor.shape`.
        dtype (`torch.dtype`): as it is stored.

    Example:

    ```python
    >>> spec = TensorSpec((16, 4), torch.bfloat16)
    >>> spec.nbytes
    128
    ```
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """Return the spec of a live tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def numel(self) -> int:
        """The number of scalars."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size on disk, in bytes."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in row-major order, without a copy if it is contiguous; any dtype."""
    # As bytes, because numpy has neither bfloat16 nor 8-bit floats.
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def refuse_non_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that holds NaN or an infinity.

    One pass without a temporary copy: `aminmax` propagates NaN, and an infinity is an extreme.

    Raises:
        ValueError: naming the tensor.

    Args:
        name (`str`): for the sentence.
        tensor (`Tensor`): of any floating dtype and shape.

    Example:

    ```python
    >>> refuse_non_finite("model.norm.weight", torch.ones(4))  # with NaN in it, it raises
    ```
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    if not all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor.detach())):
        raise ValueError(f"The tensor {name} holds NaN or an infinity; use a checkpoint from before the divergence.")


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in row-major order, in hexadecimal."""
    return sha256(tensor_bytes(tensor)).hexdigest()


def combine_digests(digests: Iterable[tuple[str, TensorSpec, str]]) -> str:
    """Return one hash for many tensors: SHA-256 over the lines `name dtype[shape] digest`, sorted by name."""
    lines = sorted(f"{name} {spec} {digest}\n" for name, spec, digest in digests)
    return sha256("".join(lines).encode()).hexdigest()


def content_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the hash that a checkpoint of these tensors has, whatever its sharding.

    Example:
        >>> content_hash({"a": torch.zeros(2)}) == content_hash({"a": torch.ones(2)})
        False
    """
    return combine_digests((name, TensorSpec.of(tensor), tensor_digest(tensor)) for name, tensor in tensors.items())
