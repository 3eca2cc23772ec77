"""A budget, and what a model of other sizes would spend of it: arithmetic on the model's description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.checkpoints import TensorSpec

Kind = Literal["parameters", "active_parameters", "memory_bytes"]
UNITS: Mapping[Kind, str] = {
    "parameters": "parameters",
    "active_parameters": "active parameters",
    "memory_bytes": "bytes of weights",
}


@dataclass(frozen=True)
class SizeBudget:
    """The most that a model may have.

    Args:
        kind (`str`): what is counted.
        amount (`int`): the most of it.
    """

    kind: Kind
    amount: int

    def __str__(self) -> str:
        return f"{self.amount:,} {UNITS[self.kind]}"


def one_budget(parameters: float | None, active_parameters: float | None, memory_bytes: float | None) -> SizeBudget:
    """Return the one budget that was given.

    Raises:
        ValueError: if there is none or more than one, or it is not positive.
    """
    kinds: dict[Kind, float | None] = {
        "parameters": parameters,
        "active_parameters": active_parameters,
        "memory_bytes": memory_bytes,
    }
    given = {kind: amount for kind, amount in kinds.items() if amount is not None}
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise ValueError(f"There must be one budget, not {what}; give parameters, active_parameters or memory_bytes.")
    ((kind, amount),) = given.items()
    if not amount >= 1:
        raise ValueError(f"{kind} is {amount:g}; a budget is at least 1.")
    return SizeBudget(kind, int(amount))


@dataclass(frozen=True)
class Ledger:
    """What a model of any smaller sizes spends.

    Args:
        described (`ModelMap`): the source.
        specs (`Mapping[str, TensorSpec]`): the dtype of every weight.
        dtype (`torch.dtype` or `None`): of all weights of the result; `None` keeps each its own.
    """

    described: ModelMap
    specs: Mapping[str, TensorSpec]
    dtype: torch.dtype | None = None

    def spent(self, kind: Kind, sizes: Mapping[Axis, int], layers: Sequence[int]) -> int:
        """Return what a model spends.

        Args:
            kind (`str`): what is counted.
            sizes (`Mapping[Axis, int]`): of its axes; the number of blocks is that of `layers`.
            layers (`Sequence[int]`): the blocks of the source that it has.
        """
        smaller = self._resized(sizes, layers)
        if kind == "parameters":
            return smaller.num_parameters()
        if kind == "active_parameters":
            return smaller.num_active_parameters()
        return sum(
            prod(each.shape(smaller.sizes)) * (self.dtype or self.specs[each.name].dtype).itemsize
            for each in smaller.parameters.values()
        )

    def embedding(self, kind: Kind) -> int:
        """Return what the embedding of the source spends; a tied readout costs nothing more."""
        return self._only_embedding().spent(kind, self.described.sizes, range(self.described.sizes[Axis.LAYERS]))

    def _only_embedding(self) -> "Ledger":
        chosen = {each.name: each for each in self.described.with_role("embedding") if Axis.VOCAB in each.axes()}
        return replace(self, described=replace(self.described, parameters=chosen))

    def _resized(self, sizes: Mapping[Axis, int], layers: Sequence[int]) -> ModelMap:
        kept = set(layers)
        parameters = {
            name: each for name, each in self.described.parameters.items() if each.layer is None or each.layer in kept
        }
        return replace(self.described, sizes={**self.described.sizes, **sizes}, parameters=parameters)
