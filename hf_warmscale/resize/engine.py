"""Make one target tensor from one source tensor. Every growth and every shrink runs through here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from typing import Literal

import torch
from torch import Tensor

from hf_warmscale.resize.axis_map import NEW, pairs

Fill = Literal["zero", "one", "mean", "random"]
"""What a new coordinate holds: 0, a gain of 1, the mean over the old coordinates, or noise of the tensor's own RMS."""

SLAB = 1 << 22
"""Scalars that are worked on at a time. The random numbers depend on it."""


@dataclass(frozen=True)
class Noise:
    """Normal noise on what was copied.

    Args:
        std (`float`): its standard deviation.
        relative (`bool`): `std` counts in units of the RMS of the copied values.
        paired (`bool`): +e and -e on the copies of one input, which leaves the output as it is; else everywhere.
    """

    std: float
    relative: bool = False
    paired: bool = False


@dataclass(frozen=True)
class Transfer:
    """How one target tensor follows from one source tensor.

    The value at target coordinates (j0, j1, ...) is `scale * weights0[j0] * weights1[j1] * ... * source[index0[j0],
    index1[j1], ...]` plus noise. Where an index is new the dimension's fill decides, and zero wins over random.

    Args:
        source (`str`): the name of the source tensor.
        index (`tuple[Tensor, ...]`): for each dimension the map of its coordinates.
        fill (`tuple[Fill, ...]`): for each dimension what its new coordinates hold.
        weights (`tuple[Tensor or None, ...]`): for each dimension the factors of its target coordinates (float64).
        scale (`float`): a factor of the whole tensor.
        offset (`float`): what the model adds to the stored value (1 for norms that store `g - 1`).
        jitter (`float`): noise on the means in new coordinates of the first dimension, in units of the tensor's RMS.
        noise (`Noise` or `None`): noise on the copied values.
        fan_in (`int` or `None`): the dimension that the forward pass sums over.
    """

    source: str
    index: tuple[Tensor, ...]
    fill: tuple[Fill, ...]
    weights: tuple[Tensor | None, ...]
    scale: float = 1.0
    offset: float = 0.0
    jitter: float = 0.0
    noise: Noise | None = None
    fan_in: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the target tensor."""
        return tuple(len(index) for index in self.index)

    def transposed(self) -> "Transfer":
        """Return the transfer of the transposed matrix."""
        return replace(
            self,
            index=self.index[::-1],
            fill=self.fill[::-1],
            weights=self.weights[::-1],
            fan_in=None if self.fan_in is None else 1 - self.fan_in,
        )


def transfer_tensor(transfer: Transfer, source: Tensor, *, key: str, dtype: torch.dtype) -> Tensor:
    """Return the target tensor, computed slab by slab in float32 (float64 for a float64 source) and cast last.

    The result depends on the arguments alone: not on the order of the tensors, their sharding or the threads.

    Args:
        transfer (`Transfer`): the maps and factors.
        source (`Tensor`): the source tensor; may be a view of a mapped file.
        key (`str`): names the stream of random numbers.
        dtype (`torch.dtype`): of the result.
    """
    target = torch.empty(transfer.shape, dtype=dtype)
    if transfer.fan_in == 0 and len(transfer.shape) == 2:
        # Slabs run along the first dimension, and the copies of an input must not be torn apart.
        _fill(transfer.transposed(), source.T, target.T, key)
    else:
        _fill(transfer, source, target, key)
    return target


def _fill(transfer: Transfer, source: Tensor, target: Tensor, key: str) -> None:
    compute = torch.float64 if source.dtype == torch.float64 else torch.float32
    rms = root_mean_square(source) if _needs_rms(transfer) else 0.0
    index = transfer.index[0]
    for start, length in _slabs(transfer.shape, source.shape[0]):
        rows = torch.nonzero((index >= start) & (index < start + length)).flatten()
        block = source.narrow(0, start, length).to(compute) + transfer.offset
        random = generator(f"{key}:{start}")
        _write(transfer, block, index[rows] - start, target, rows, rms, random)
    new = torch.nonzero(index < 0).flatten()
    if len(new):
        random = generator(f"{key}:new")
        block = _new_rows(transfer, source, compute, rms, len(new), random)
        _write(transfer, block, torch.arange(len(new)) % len(block), target, new, rms, random)


def _write(
    transfer: Transfer,
    block: Tensor,
    local: Tensor,
    target: Tensor,
    rows: Tensor,
    rms: float,
    random: torch.Generator,
) -> None:
    """Map the other dimensions of `block`, copy its rows `local` to `rows` of the target, and add what is random."""
    wide = _map_other_dimensions(transfer, block)
    is_new = bool((transfer.index[0][rows] < 0).any())
    columns = _random_columns(transfer, is_new)
    if transfer.noise is None and transfer.weights[0] is None and columns is None and not transfer.offset:
        target.index_copy_(0, rows, wide.to(target.dtype).index_select(0, local))
        return
    out = wide.index_select(0, local)
    if transfer.weights[0] is not None:
        out *= transfer.weights[0][rows].to(out.dtype).reshape(-1, *[1] * (out.dim() - 1))
    if columns is not None:
        drawn = torch.randn(len(rows), len(columns), generator=random, dtype=out.dtype)
        out.view(len(rows), -1).index_copy_(1, columns, drawn.mul_(rms * transfer.scale))
    if transfer.noise is not None:
        _add_noise(out, transfer, rms, random)
    target.index_copy_(0, rows, (out - transfer.offset).to(target.dtype))


def _map_other_dimensions(transfer: Transfer, block: Tensor) -> Tensor:
    for dim in range(1, block.dim()):
        index, fill, weights = transfer.index[dim], transfer.fill[dim], transfer.weights[dim]
        mean = block.mean(dim, keepdim=True) if fill == "mean" else None
        new = torch.nonzero(index < 0).flatten()
        if not torch.equal(index, torch.arange(block.shape[dim])):
            block = block.index_select(dim, index.clamp(min=0))
        if len(new):
            block.index_fill_(dim, new, 0.0)
        if len(new) and mean is not None:
            block.index_add_(dim, new, mean.expand(*block.shape[:dim], len(new), *block.shape[dim + 1 :]))
        if weights is not None:
            block *= weights.to(block.dtype).reshape(-1, *[1] * (block.dim() - dim - 1))
    return block * transfer.scale if transfer.scale != 1 else block


def _new_rows(
    transfer: Transfer, source: Tensor, compute: torch.dtype, rms: float, count: int, random: torch.Generator
) -> Tensor:
    """Return what new coordinates of the first dimension hold before the other dimensions are mapped."""
    if transfer.fill[0] != "mean":
        return torch.full((1, *source.shape[1:]), float(transfer.fill[0] == "one"), dtype=compute)
    mean = (source.sum(0, keepdim=True, dtype=torch.float64) / len(source)).to(compute) + transfer.offset
    if not transfer.jitter:
        return mean
    return mean + transfer.jitter * rms * torch.randn((count, *source.shape[1:]), generator=random, dtype=compute)


def _random_columns(transfer: Transfer, row_is_new: bool) -> Tensor | None:
    """Return the flat coordinates of the other dimensions that hold random values in a row, or `None`."""
    if row_is_new and transfer.fill[0] != "random":
        return None
    others = list(zip(transfer.index[1:], transfer.fill[1:], strict=True))
    allowed = _outer([(index >= 0) | (fill == "random") for index, fill in others])
    old = _outer([index >= 0 for index, _ in others])
    columns = torch.nonzero(allowed if row_is_new else allowed & ~old).flatten()
    return columns if len(columns) else None


def _outer(masks: list[Tensor]) -> Tensor:
    outer = torch.ones(1, dtype=torch.bool)
    for mask in masks:
        outer = (outer[:, None] & mask[None, :]).flatten()
    return outer


def _add_noise(out: Tensor, transfer: Transfer, rms: float, random: torch.Generator) -> None:
    noise = transfer.noise
    assert noise is not None
    std = noise.std * (rms * _gain(transfer) if noise.relative else 1.0)
    if not noise.paired:
        out += torch.randn(out.shape, generator=random, dtype=out.dtype).mul_(std)
        return
    assert transfer.fan_in is not None
    number, sign = pairs(transfer.index[transfer.fan_in])
    if not sign.any():
        return
    shape = list(out.shape)
    shape[transfer.fan_in] = int(number.max()) + 1
    drawn = torch.randn(shape, generator=random, dtype=out.dtype).mul_(std)
    signs = sign.to(out.dtype).reshape(-1, *[1] * (out.dim() - transfer.fan_in - 1))
    out.addcmul_(drawn.index_select(transfer.fan_in, number), signs)


def _gain(transfer: Transfer) -> float:
    """Return the RMS of the factors that the copied values were multiplied by."""
    squares = [float(weights.square().mean()) for weights in transfer.weights if weights is not None]
    return abs(transfer.scale) * prod(squares) ** 0.5


def _slabs(shape: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    step = max(SLAB // max(prod(shape[1:]), 1), 1)
    return ((start, min(step, size - start)) for start in range(0, size, step))


def _needs_rms(transfer: Transfer) -> bool:
    drawn = any(
        fill == "random" and bool((index == NEW).any())
        for fill, index in zip(transfer.fill, transfer.index, strict=True)
    )
    return drawn or bool(transfer.jitter) or (transfer.noise is not None and transfer.noise.relative)


def root_mean_square(tensor: Tensor) -> float:
    """Return sqrt(mean(x^2)), rounded to float32 so that the order of the summation does not show."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float((norm / max(tensor.numel(), 1) ** 0.5).float())


def generator(key: str) -> torch.Generator:
    """Return a stream of random numbers that depends on `key` alone."""
    return torch.Generator().manual_seed(int.from_bytes(sha256(key.encode()).digest()[:8], "little") >> 1)
