"""The shapes that fit a budget: depth, width and heads are chosen, the MLP takes what is left."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_warmscale.architecture import Axis, ModelMap
from hf_warmscale.compression.budget.budget import Ledger, SizeBudget
from hf_warmscale.merging.search.spaces import Point, Range
from hf_warmscale.resize.shrinking.selection import PER_BLOCK

SMALLEST = 0.5
"""The smallest share of the blocks, the hidden size and the heads that is tried."""
SMALLEST_MLP = 0.125
STEP = 8
"""Hidden sizes and MLPs are multiples of it where the source's are."""

Sizes = dict[Axis, int]


@dataclass(frozen=True)
class Shapes:
    """The shapes of a model under a budget.

    A point of the space is a share of the source for each of blocks, hidden size and key-value heads, as far as the
    family can change them.

    Args:
        described (`ModelMap`): the source.
        ledger (`Ledger`): counts what a shape spends.
        budget (`SizeBudget`): what a shape may spend.
        blocks (`Callable[[int], Sequence[int]]`): the blocks that stay if their number is given.
        accepts (`Callable[[Mapping[Axis, int]], bool]`): whether the family can have these sizes.
    """

    described: ModelMap
    ledger: Ledger
    budget: SizeBudget
    blocks: Callable[[int], Sequence[int]]
    accepts: Callable[[Mapping[Axis, int]], bool]

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The sides of the space; a size that cannot change is not among them."""
        return {
            axis: Range(min(options) / self.described.sizes[axis], 1.0)
            for axis, options in self.options.items()
            if len(options) > 1
        }

    @cached_property
    def options(self) -> dict[Axis, list[int]]:
        """The sizes of each chosen axis that are tried, in ascending order."""
        steps = {Axis.LAYERS: 1, Axis.HIDDEN: self._hidden_step(), self._head_axis(): 1}
        return {axis: self._multiples(axis, step) for axis, step in steps.items() if self._can_change(axis)}

    def sizes(self, point: Point) -> Sizes | None:
        """Return the sizes at a point, with the largest MLP that fits; `None` if none does."""
        chosen: Sizes = {}
        for axis in self.options:
            wanted = point.get(axis, 1.0) * self.described.sizes[axis]
            if axis != Axis.HIDDEN:
                chosen[axis] = min(self.options[axis], key=lambda size: abs(size - wanted))
        # Last: which hidden sizes a family accepts depends on the heads.
        hidden = point.get(Axis.HIDDEN, 1.0) * self.described.sizes[Axis.HIDDEN]
        for size in sorted(self.options.get(Axis.HIDDEN, []), key=lambda size: abs(size - hidden)):
            if self.accepts(self._with_followers({**self.described.sizes, **chosen, Axis.HIDDEN: size})):
                chosen[Axis.HIDDEN] = size
                break
        return self.filled(chosen)

    def filled(self, chosen: Mapping[Axis, int]) -> Sizes | None:
        """Return sizes with the largest MLP that fits the budget; `None` if none does."""
        sizes = self._with_followers({**self.described.sizes, **chosen})
        if not self.accepts(sizes):
            return None
        # Sorted by size, so all before the first that fits do not.
        first = bisect_left(self._mlps, True, key=lambda shares: self.fits({**sizes, **shares}))
        for shares in self._mlps[first:]:
            complete = {**sizes, **shares}
            # Some families tie the MLP to other sizes: a muP model is never narrower than its base.
            if self.fits(complete) and self.accepts(complete):
                return complete
        return None

    def point(self, sizes: Mapping[Axis, int]) -> Point:
        """Return the point of some sizes."""
        return {name: sizes[Axis(name)] / self.described.sizes[Axis(name)] for name in self.ranges}

    def spent(self, sizes: Mapping[Axis, int]) -> int:
        """Return what a shape spends of the budget."""
        return self.ledger.spent(self.budget.kind, sizes, self.blocks(sizes[Axis.LAYERS]))

    def fits(self, sizes: Mapping[Axis, int]) -> bool:
        """Tell whether a shape is within the budget."""
        return self.spent(sizes) <= self.budget.amount

    def plain_cuts(self) -> dict[str, Sizes]:
        """Return the shapes that people cut by hand: fewer blocks, narrower MLPs, or all narrower."""
        cuts, full = {}, self.described.sizes
        depths = [{**full, Axis.LAYERS: count} for count in self.options.get(Axis.LAYERS, [])]
        fitting = (sizes for sizes in depths[::-1] if self.fits(sizes) and self.accepts(sizes))
        cuts["depth only"] = next(fitting, None)
        cuts["MLP only"] = self.filled({})
        filled = [self.filled({Axis.HIDDEN: size}) for size in self.options.get(Axis.HIDDEN, [])]
        narrower = [sizes for sizes in filled if sizes is not None and sizes[Axis.HIDDEN] < full[Axis.HIDDEN]]
        cuts["hidden + MLP"] = min(narrower, key=self._unevenness, default=None)
        return {name: sizes for name, sizes in cuts.items() if sizes is not None}

    @property
    def smallest(self) -> Sizes:
        """The smallest shape that is tried."""
        chosen = {axis: options[0] for axis, options in self.options.items()}
        return {**self._with_followers({**self.described.sizes, **chosen}), **self._mlps[-1]}

    def _unevenness(self, sizes: Mapping[Axis, int]) -> float:
        """Return how differently hidden size and MLP were cut."""
        shares = {axis: sizes[axis] / self.described.sizes[axis] for axis in (Axis.HIDDEN, *self._mlp_axes)}
        return max(shares.values()) - min(shares.values())

    @cached_property
    def _mlp_axes(self) -> list[Axis]:
        return [axis for axis in PER_BLOCK if axis in self.described.sizes and self._can_change(axis)]

    @cached_property
    def _mlps(self) -> list[Sizes]:
        """The sizes of all MLPs together, the largest first."""
        if not self._mlp_axes:
            return [{}]
        finest = max(self._mlp_axes, key=lambda axis: self.described.sizes[axis])
        step, full = self._step(finest), self.described.sizes[finest]
        least = max(step, round(SMALLEST_MLP * full / step) * step)
        return [self._mlp_at(size / full) for size in range(full, least - 1, -step)]

    def _mlp_at(self, share: float) -> Sizes:
        return {
            axis: max(
                self._step(axis), round(share * self.described.sizes[axis] / self._step(axis)) * self._step(axis)
            )
            for axis in self._mlp_axes
        }

    def _multiples(self, axis: Axis, step: int) -> list[int]:
        full = self.described.sizes[axis]
        least = max(step, -(-round(SMALLEST * full) // step) * step)
        sizes = list(range(full, least - 1, -step))[::-1]
        # Few heads: one is tried too, though it is less than the smallest share.
        return sizes if axis != self._head_axis() else list(range(1, full + 1))

    def _step(self, axis: Axis) -> int:
        return STEP if self.described.sizes[axis] % STEP == 0 and self.described.sizes[axis] >= STEP**2 else 1

    def _hidden_step(self) -> int:
        # Where the head size is hidden size / heads, whole heads go.
        if Axis.HEAD_DIM in self.described.derived:
            return self.described.sizes[Axis.HEAD_DIM]
        return self._step(Axis.HIDDEN)

    def _head_axis(self) -> Axis:
        return Axis.KV_HEADS if Axis.KV_HEADS in self.described.sizes else Axis.HEADS

    def _can_change(self, axis: Axis) -> bool:
        described = self.described
        if axis not in described.sizes or axis in described.frozen or axis in described.derived:
            return False
        if axis in (Axis.HEADS, Axis.KV_HEADS):
            return Axis.HEADS not in described.frozen and Axis.HEAD_DIM not in described.derived
        return axis == Axis.LAYERS or axis in described.fields

    def _with_followers(self, sizes: Sizes) -> Sizes:
        """Return the sizes with what follows from the chosen ones: heads in their groups, heads of the hidden size."""
        full = self.described.sizes
        if Axis.HEAD_DIM in self.described.derived:
            heads = sizes[Axis.HIDDEN] // full[Axis.HEAD_DIM]
            kv_heads = full.get(Axis.KV_HEADS, heads) * heads // full[Axis.HEADS]
            sizes = {**sizes, Axis.HEADS: heads, **({Axis.KV_HEADS: kv_heads} if Axis.KV_HEADS in full else {})}
        elif Axis.KV_HEADS in full:
            sizes = {**sizes, Axis.HEADS: sizes[Axis.KV_HEADS] * (full[Axis.HEADS] // full[Axis.KV_HEADS])}
        if Axis.INTERMEDIATE in self.described.derived:
            sizes = {**sizes, Axis.INTERMEDIATE: full[Axis.INTERMEDIATE] // full[Axis.HIDDEN] * sizes[Axis.HIDDEN]}
        return sizes
