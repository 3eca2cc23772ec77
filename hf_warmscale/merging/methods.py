"""Merge methods as functions of tensors, written from their formulas.

Each accumulates in float64, so that the order of the inputs changes the last bit at most, and returns the dtype of its
first input. They run on the CPU, where checkpoints are read. `weights` are used as given: no method normalises them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_warmscale.keyed_random import keyed_generator
from hf_warmscale.merging.weighted_sum import weighted_sum_

Rescale = Literal["density", "l1"]

PARALLEL = 0.9995
"""Above this |cos|, slerp falls back to linear interpolation: `sin(O)` in the denominator is too small."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return `sum_i w_i x_i`."""
    out = torch.empty_like(tensors[0])
    weighted_sum_(out, tensors, weights, accumulate=torch.float64)
    return out


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Return the point at `fraction` of the arc from `first` to `second` (Shoemake 1985).

    `sin((1-t)O)/sin(O) a + sin(tO)/sin(O) b`, with `O` the angle between the flattened tensors; linear
    interpolation where they are almost parallel or one of them is zero.
    """
    a, b = first.double(), second.double()
    cosine = _cosine(a, b)
    # Written as a negation so that NaN (a zero tensor) takes this branch too.
    if not abs(cosine) <= PARALLEL:
        return torch.lerp(a, b, fraction).to(first.dtype)
    angle = torch.arccos(cosine)
    shares = torch.sin(torch.stack([(1 - fraction) * angle, fraction * angle])) / torch.sin(angle)
    return (shares[0] * a + shares[1] * b).to(first.dtype)


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return `x_0 + sum_i w_i (x_i - x_0)` (arXiv 2212.04089)."""
    return _add_differences(base, tensors, weights, lambda delta, _: delta)


def ties(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, density: float) -> Tensor:
    """Trim, elect sign, merge (arXiv 2306.01708, algorithm 1), with weights.

    Each difference from the base is trimmed to its `density` largest entries by magnitude. For each entry the sign of
    the weighted sum is elected, and the weighted mean of the differences that agree with it is added to the base.

    Args:
        density (`float`): the share of each difference that is kept, in (0, 1].
    """
    origin = base.double()
    # The weight is part of the vote: with negative weights a difference votes for the other sign.
    votes = [weight * trim(x.double() - origin, density) for x, weight in zip(tensors, weights, strict=True)]
    elected = torch.sign(torch.stack(votes).sum(dim=0))
    total, mass = torch.zeros_like(origin), torch.zeros_like(origin)
    for weight, vote in zip(weights, votes, strict=True):
        # Where the votes cancel, `elected` is 0, and it would agree with every entry that was trimmed to 0.
        agrees = (torch.sign(vote) == elected) & (vote != 0)
        total += vote * agrees
        mass += weight * agrees
    # Divided by the weights of those that agree, not by all: an entry that one checkpoint alone kept is not diluted.
    mean = torch.where(mass.abs() > 0, total / mass, torch.zeros_like(total))
    return (origin + mean).to(base.dtype)


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the `density` largest entries by magnitude and zero the rest; among equal magnitudes the first are kept."""
    keep = max(1, int(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    magnitude = delta.abs().flatten()
    smallest = magnitude.kthvalue(len(magnitude) - keep + 1).values
    # Differences of bfloat16 weights have many equal magnitudes; `>=` would keep far more than `density` of them.
    kept = magnitude > smallest
    tied = (magnitude == smallest).nonzero().flatten()
    kept[tied[: keep - int(kept.sum())]] = True
    return delta * kept.view_as(delta)


def dare(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float,
    keys: Sequence[str],
    rescale: Rescale = "density",
) -> Tensor:
    """Drop random entries of each difference, rescale the rest and add them to the base (arXiv 2311.03099).

    Args:
        density (`float`): the share of each difference that is kept, `1 - p` in the paper, in (0, 1].
        keys (`Sequence[str]`): the key of each tensor's mask; see `dare_mask`.
        rescale (`Rescale`): see `drop_and_rescale`.
    """

    def sparse(delta: Tensor, index: int) -> Tensor:
        mask = dare_mask(delta.shape, density=density, key=keys[index])
        return drop_and_rescale(delta, mask, density=density, rescale=rescale)

    return _add_differences(base, tensors, weights, sparse)


def dare_mask(shape: Sequence[int], *, density: float, key: str) -> Tensor:
    """Return a mask that keeps each entry with probability `density`; the same `key` gives the same mask.

    The random numbers depend on the key alone, so the order in which checkpoints are listed changes nothing.
    """
    # float64 and the CPU generator: the mask must not depend on the dtype or the device of the checkpoint.
    draw = torch.rand(tuple(shape), generator=keyed_generator(key, bits=64), dtype=torch.float64)
    return draw < density


def drop_and_rescale(delta: Tensor, mask: Tensor, *, density: float, rescale: Rescale) -> Tensor:
    """Zero the entries that the mask drops and scale up the rest.

    Args:
        delta (`Tensor`): a difference from the base.
        mask (`Tensor`): true for the entries that are kept.
        density (`float`): the probability of being kept, `1 - p` in the paper.
        rescale (`Rescale`): `"density"` divides by `1 - p`, which preserves the expectation; `"l1"` preserves the sum
            of the magnitudes.
    """
    kept = delta * mask
    if rescale == "density":
        return kept / density
    # Nothing is left where the mask dropped every non-zero entry; then there is nothing to scale.
    left = kept.abs().sum()
    return kept * (delta.abs().sum() / left) if left > 0 else kept


def model_stock(base: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return `t * mean + (1 - t) * base` with `t = N cos / (1 + (N - 1) cos)` (arXiv 2403.19522).

    `cos` is the mean cosine over all pairs of the `N` differences from the base; where it is negative, the result is
    the base.
    """
    origin = base.double()
    deltas = [tensor.double() - origin for tensor in tensors]
    count = len(deltas)
    pairs = [_cosine(a, b) for index, a in enumerate(deltas) for b in deltas[:index]]
    # NaN is a tensor that some checkpoint left as it was in the base: a difference of zero has no direction.
    cosine = torch.stack(pairs).nan_to_num(nan=0.0).mean().clamp(min=0.0)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return (origin + ratio * torch.stack(deltas).mean(dim=0)).to(base.dtype)


def _add_differences(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], change: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Return `x_0 + sum_i w_i change(x_i - x_0, i)`, one difference in memory at a time."""
    origin = base.double()
    total = origin.clone()
    for index, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        total.add_(change(tensor.double() - origin, index), alpha=weight)
    return total.to(base.dtype)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between two tensors; NaN where one of them is zero."""
    cosine: Tensor = torch.dot(a.flatten(), b.flatten()) / torch.sqrt(a.square().sum() * b.square().sum())
    return cosine
