"""How gradients, and with them optimizer states and rates, follow a growth.

Let a source weight w have k equal target copies, each f w. Then dL/d(copy) = dL/dw / (f k). A weight that reads n_in
copies and writes n_out copies has f = 1 / n_in and k = n_in n_out, so its gradient is divided by n_out. An optimizer
whose moments and rates follow repeats the steps of the small model, until noise makes the copies differ.
"""

from dataclasses import replace
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from hf_warmscale.mup import OptimizerFactors
from hf_warmscale.resize.planning.axis_map import NEW, copies, rank
from hf_warmscale.resize.planning.transfer import Transfer

Moments = Literal["scale", "asymmetric_reset", "drop"]
OptimizerKind = Literal["adam", "muon"]

POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
"""The states of Adam, AdamW and Muon, each with the power of the gradient that it averages."""


def moment_transfer(
    transfer: Transfer, power: int, *, first_copies_only: bool = False, zero: bool = False
) -> Transfer:
    """Return how an average of the gradient, or of its square, follows from the source's.

    Args:
        transfer (`Transfer`): of the weight.
        power (`int`): 1 for the gradient, 2 for its square.
        first_copies_only (`bool`): later copies start at 0, so they move apart from the first (arXiv:2602.02472).
        zero (`bool`): the weight belongs to a zero-initialised block, so all of its moments start at 0.
    """
    counted = zip(transfer.index, transfer.weights, strict=True)
    return replace(
        transfer,
        index=tuple(map(_first_copies, transfer.index)) if first_copies_only else transfer.index,
        fill=tuple("zero" for _ in transfer.index),
        # (f k) per dimension. Where the weights divide, f k = (1 / n) n = 1; elsewhere f = 1 and k = n. What remains
        # is the 1 / n_out of the module's docstring, squared for a second moment.
        weights=tuple((copies(index) * (1.0 if weights is None else weights)) ** -power for index, weights in counted),
        scale=0.0 if zero else transfer.scale**-power,
        # The derivative by a stored g - 1 is the derivative by g.
        offset=0.0,
        jitter=0.0,
        noise=None,
    )


def growth_factors(transfer: Transfer, kind: OptimizerKind = "adam") -> OptimizerFactors:
    """Return what learning rate, weight decay and eps are multiplied by, so that training goes on as it was.

    Let f be the factor on the weight and c the factor on its gradient. Adam's step depends on c only through eps, so
    its rate takes f. Muon's step has spectral norm 1, which k copies share, so its rate takes f sqrt(k).

    Args:
        transfer (`Transfer`): of the weight. Where copies are uneven the mean counts.
        kind (`str`): the optimizer.
    """
    weighted = zip(transfer.weights, transfer.index, strict=True)
    factors = [1.0 if weights is None else _mean_of_old(weights, index) for weights, index in weighted]
    shared = prod(_mean_of_old(copies(index), index) for index in transfer.index)
    factor = abs(transfer.scale) * prod(factors)
    gradient = 1 / (factor * shared)
    if kind == "muon":
        spread = sqrt(shared)
        return OptimizerFactors(lr=factor * spread, weight_decay=1 / (factor * spread), eps=gradient * spread)
    # Decoupled decay acts through lr * weight_decay, which must not change; eps is added to sqrt(v), so it has the
    # unit of a gradient.
    return OptimizerFactors(lr=factor, weight_decay=1 / factor, eps=gradient)


def _first_copies(index: Tensor) -> Tensor:
    return torch.where(rank(index) == 0, index, NEW)


def _mean_of_old(values: Tensor, index: Tensor) -> float:
    old = values[index >= 0]
    return float(old.mean()) if len(old) else 1.0
