"""Make one target tensor from one source tensor. Every growth and every shrink runs through here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from hf_warmscale.keyed_random import keyed_generator
from hf_warmscale.resize.planning.axis_map import NEW, pairs

Fill = Literal["zero", "one", "mean", "random"]
"""The initial value of a new coordinate: 0, a gain of 1, the mean of the old ones, or noise of the tensor's RMS."""

SLAB = 1 << 22
"""The number of scalars in a slab. The random numbers of a seed depend on it, so it must not change."""


@dataclass(frozen=True)
class Noise:
    """Normal noise on copied values.

    Args:
        std (`float`): its standard deviation.
        relative (`bool`): `std` is in units of the RMS of the copied values.
        paired (`bool`): the noise is +e and -e on the copies of one input, which keeps the output; otherwise it is
            independent everywhere.
    """

    std: float
    relative: bool = False
    paired: bool = False


@dataclass(frozen=True)
class Transfer:
    """How one target tensor follows from one source tensor.

    The value at target coordinates (j0, j1, ...) is `scale * weights0[j0] * weights1[j1] * ... * source[index0[j0],
    index1[j1], ...]` plus noise. Where an index is new, the fill of its dimension decides; zero wins over random.

    Args:
        source (`str`): the name of the source tensor.
        index (`tuple[Tensor, ...]`): for each dimension the map of its coordinates.
        fill (`tuple[Fill, ...]`): for each dimension the initial value of its new coordinates.
        weights (`tuple[Tensor or None, ...]`): for each dimension the factors of its target coordinates (float64).
        scale (`float`): a factor on the whole tensor.
        offset (`float`): the constant that the model adds to the stored value (1 for norms that store `g - 1`).
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

    def rescales(self) -> bool:
        """Tell whether any value is new or rescaled; otherwise bits are copied."""
        weighted = any(weights is not None for weights in self.weights)
        return self.scale != 1 or weighted or any(bool((index < 0).any()) for index in self.index)

    def folded(self) -> "Transfer":
        """Return the same transfer with the scale merged into the weights, if there are any, so values round once."""
        place = next((dim for dim, weights in enumerate(self.weights) if weights is not None), None)
        if place is None:
            return self
        weights = [w * self.scale if dim == place and w is not None else w for dim, w in enumerate(self.weights)]
        return replace(self, weights=tuple(weights), scale=1.0)

    def transposed(self) -> "Transfer":
        """Return the transfer of the transposed matrix."""
        return replace(
            self,
            index=self.index[::-1],
            fill=self.fill[::-1],
            weights=self.weights[::-1],
            fan_in=None if self.fan_in is None else 1 - self.fan_in,
        )


def transfer_tensor(
    transfer: Transfer, source: Tensor, *, key: str, dtype: torch.dtype, compute: torch.dtype | None = None
) -> Tensor:
    """Return the target tensor, computed slab by slab and cast last.

    The result depends on the arguments alone: not on the order of the tensors, their sharding or the threads.

    Args:
        transfer (`Transfer`): the maps and factors.
        source (`Tensor`): the source tensor; may be a view of a mapped file.
        key (`str`): of the stream of random numbers.
        dtype (`torch.dtype`): of the result.
        compute (`torch.dtype`, *optional*): of the arithmetic; that of [`compute_dtype`] by default.
    """
    if not transfer.shape:  # a constant of an activation function
        return source.to(dtype, copy=True)
    compute = compute or compute_dtype(source)
    target = torch.empty(transfer.shape, dtype=dtype)
    if transfer.fan_in == 0 and len(transfer.shape) == 2:
        # Slabs run along the first dimension, and the copies of an input must not be torn apart.
        _Filler(transfer.transposed(), source.T, key, compute).fill(target.T)
    else:
        _Filler(transfer, source, key, compute).fill(target)
    return target


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: float32, but float64 for what is float64 and for vectors.

    Vectors are small, so float64 costs nothing, and a norm that stores `g - 1` would lose digits of `g` otherwise.
    """
    return torch.float64 if tensor.dtype == torch.float64 or tensor.dim() < 2 else torch.float32


class _Filler:
    """The state that the slabs of one tensor share."""

    def __init__(self, transfer: Transfer, source: Tensor, key: str, compute: torch.dtype) -> None:
        self.transfer, self.source, self.key, self.compute = transfer.folded(), source, key, compute
        self.rms = root_mean_square(source) if _needs_rms(transfer) else 0.0
        # From `transfer`, not `self.transfer`: folding moves the scale into the weights, and these do not act on new
        # values.
        self.random_std = self.rms * transfer.scale
        # Adding and subtracting an offset would round values that are only copied.
        self.offset = transfer.offset if transfer.rescales() else 0.0
        noise = transfer.noise
        paired = noise is not None and noise.paired and transfer.fan_in is not None
        self.pairs = pairs(transfer.index[transfer.fan_in or 0]) if paired else None

    def fill(self, target: Tensor) -> None:
        """Write the target, a slab of rows at a time; the rows of a slab are all copied or all new."""
        for start, stop, is_new in _slabs(self.transfer):
            # One stream per slab, so that no slab depends on how many numbers another one drew.
            random = keyed_generator(f"{self.key}:{start}")
            rows = self.transfer.index[0][start:stop]
            block = self._new_rows(len(rows), random) if is_new else self._old_rows(rows)
            for dim in range(1, block.dim()):
                block = self._map_dimension(block, dim)
            if self.transfer.weights[0] is not None:
                block *= along(self.transfer.weights[0][start:stop], 0, block)
            self._fill_random(block, is_new, random)
            self._add_noise(block, random)
            # The cast comes last, so that every value is rounded to the target's dtype once.
            target[start:stop].copy_(block - self.offset if self.offset else block)

    def _old_rows(self, rows: Tensor) -> Tensor:
        block = self.source.index_select(0, rows).to(self.compute)
        return self._scaled(block)

    def _new_rows(self, count: int, random: torch.Generator) -> Tensor:
        shape = (count, *self.source.shape[1:])
        if self.transfer.fill[0] != "mean":
            # `_scaled` adds the offset, so subtract it here: a new gain is then 0, or 1, times the scale.
            value = 1.0 - self.offset if self.transfer.fill[0] == "one" else -self.offset
            return self._scaled(torch.full(shape, value, dtype=self.compute))
        # In float64, so that the mean does not depend on how the source is sharded or summed.
        total = self.source.sum(0, keepdim=True, dtype=torch.float64)
        block = (total / len(self.source)).to(self.compute).expand(shape).clone()
        if self.transfer.jitter:
            # Drawn over the source's columns `[new rows, source columns]`, before they are mapped: the copies of a
            # hidden coordinate get the same jitter, as they get the same value.
            block += self.transfer.jitter * self.rms * torch.randn(shape, generator=random, dtype=self.compute)
        return self._scaled(block)

    def _scaled(self, block: Tensor) -> Tensor:
        if self.offset:
            block = block + self.offset
        return block * self.transfer.scale if self.transfer.scale != 1 else block

    def _map_dimension(self, block: Tensor, dim: int) -> Tensor:
        index, weights = self.transfer.index[dim], self.transfer.weights[dim]
        new = torch.nonzero(index < 0).flatten()
        # Before the selection, for the mean is over the source's coordinates, each counted once.
        mean = block.mean(dim, keepdim=True) if len(new) and self.transfer.fill[dim] == "mean" else None
        # New coordinates (-1) take column 0 as a placeholder, which is overwritten just below.
        block = block.index_select(dim, index.clamp(min=0))
        if mean is not None:
            block.index_copy_(dim, new, mean.expand(*block.shape[:dim], len(new), *block.shape[dim + 1 :]))
        elif len(new):
            block.index_fill_(dim, new, 0.0)
        if weights is not None:
            block *= along(weights, dim, block)
        return block

    def _fill_random(self, block: Tensor, is_new: bool, random: torch.Generator) -> None:
        columns = _random_columns(self.transfer, is_new)
        if len(columns):
            drawn = torch.randn(len(block), len(columns), generator=random, dtype=block.dtype)
            block.view(len(block), -1).index_copy_(1, columns, drawn.mul_(self.random_std))

    def _add_noise(self, block: Tensor, random: torch.Generator) -> None:
        noise = self.transfer.noise
        if noise is None:
            return
        # The signal of an SNR is what the target holds: with weights of 1 / n its RMS is that of the source / n.
        std = noise.std * (self.rms * _gain(self.transfer) if noise.relative else 1.0)
        if self.pairs is None:
            # New coordinates get the noise too: the M of `szp` covers the whole target.
            block += torch.randn(block.shape, generator=random, dtype=block.dtype).mul_(std)
            return
        number, sign = self.pairs
        dim = self.transfer.fan_in or 0
        if sign.any():
            # One draw per pair of copies along the summed dimension, then +1 or -1 times it: the pair's sum is exact.
            shape = [*block.shape[:dim], int(number.max()) + 1, *block.shape[dim + 1 :]]
            drawn = torch.randn(shape, generator=random, dtype=block.dtype).mul_(std)
            block.addcmul_(drawn.index_select(dim, number), along(sign, dim, block))


def _slabs(transfer: Transfer) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, stop, rows are new) for consecutive rows of the target; a slab never mixes new and copied rows."""
    step = max(SLAB // max(prod(transfer.shape[1:]), 1), 1)
    kinds, counts = torch.unique_consecutive(transfer.index[0] < 0, return_counts=True)
    start = 0
    for is_new, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        for begin in range(start, start + count, step):
            yield begin, min(begin + step, start + count), is_new
        start += count


def along(vector: Tensor, dim: int, block: Tensor) -> Tensor:
    """Return a vector shaped to multiply `block` along `dim`."""
    return vector.to(block.dtype).reshape(-1, *[1] * (block.dim() - dim - 1))


def _random_columns(transfer: Transfer, row_is_new: bool) -> Tensor:
    """Return the flat coordinates of the other dimensions that are random in a row.

    In a copied row these are the new coordinates. In a new row that is random, all are, unless a zero fill forbids it.
    """
    if row_is_new and transfer.fill[0] != "random":
        return torch.empty(0, dtype=torch.int64)
    others = list(zip(transfer.index[1:], transfer.fill[1:], strict=True))
    allowed = _outer([(index >= 0) | (fill == "random") for index, fill in others])
    old = _outer([index >= 0 for index, _ in others])
    return torch.nonzero(allowed if row_is_new else allowed & ~old).flatten()


def _outer(masks: list[Tensor]) -> Tensor:
    outer = torch.ones(1, dtype=torch.bool)
    for mask in masks:
        outer = (outer[:, None] & mask[None, :]).flatten()
    return outer


def _gain(transfer: Transfer) -> float:
    """Return the RMS of the factors on the copied values."""
    squares = [float(weights.square().mean()) for weights in transfer.weights if weights is not None]
    return abs(transfer.scale) * prod(squares) ** 0.5


def _needs_rms(transfer: Transfer) -> bool:
    fresh = [fill for fill, index in zip(transfer.fill, transfer.index, strict=True) if bool((index == NEW).any())]
    relative = transfer.noise is not None and transfer.noise.relative
    return "random" in fresh or (bool(fresh) and transfer.jitter > 0) or relative


def root_mean_square(tensor: Tensor) -> float:
    """Return sqrt(mean(x^2)), rounded to float32 so that it does not depend on the order of summation."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float((norm / max(tensor.numel(), 1) ** 0.5).float())
