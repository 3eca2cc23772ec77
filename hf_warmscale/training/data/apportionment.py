"""Which source a sample comes from: nested rounding of cumulative weights.

Take two sources, and let w be the weight of source 0. Of the first n samples, source 0 gives round(n w) and source 1
gives the rest. With more sources, the same rule splits a group of sources into two groups; within a group it counts
the samples of that group instead of all samples. Every count is a monotone function of n in closed form. So sample i
is found without its predecessors, and weights that change along the way only bend the function.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

PHASE = 0.5 + 1.37e-5
"""Round up from here. Weights are short decimals, so exact halves are common, and floating point decides them at
random; nothing falls on this number. The price: rounding moves a count by up to PHASE instead of 1/2."""

EXACT_SEARCH = 6
"""With up to this many groups, every tree is tried (a few milliseconds). Of more, the lightest are paired first."""

Tree = int | tuple["Tree", "Tree"]


class Apportionment:
    """Source and running count of every sample, as pure functions of its index.

    After any number of samples, the count of a source differs from its expectation (its weights summed over these
    samples) by at most `deviation`. That is less than 1 for up to four sources of constant weight.

    Args:
        starts (`Sequence[int]`): the samples at which weights change; the first is 0.
        weights (`[segments, sources]`): the weights from each start on; every row sums to 1.
    """

    def __init__(self, starts: Sequence[int], weights: Floats) -> None:
        self.starts, self.weights = np.asarray(starts, dtype=np.float64), weights
        self.num_sources = weights.shape[1]
        # Every tree gives the right shares. The tree only decides how tight the bound is, so the plain mean over the
        # segments is good enough to choose one.
        self.tree = best_tree(tuple(float(weight) for weight in weights.mean(axis=0)))
        self.deviation = self._bound(self.tree, 0.0)

    def assign(self, samples: Integers) -> tuple[Integers, Integers]:
        """Return the source of each sample and how many samples that source gave before it.

        Args:
            samples (`[n]` of `int64`): global sample indices, in any order.

        Returns:
            `tuple`: two `[n]` arrays of `int64`.
        """
        sources, ordinals = np.empty_like(samples), np.empty_like(samples)
        self._descend(self.tree, samples, np.arange(len(samples)), sources, ordinals)
        return sources, ordinals

    def counts(self, num_samples: int) -> list[int]:
        """Return how many of the first `num_samples` samples come from each source."""
        counts = [0] * self.num_sources
        pending: list[tuple[Tree, int]] = [(self.tree, num_samples)]
        while pending:
            tree, count = pending.pop()
            if isinstance(tree, int):
                counts[tree] = count
            else:
                left = int(self._left_count(tree, np.asarray([count]))[0])
                pending += [(tree[0], left), (tree[1], count - left)]
        return counts

    def expected(self, num_samples: int) -> list[float]:
        """Return the expected counts: the weights summed over the first `num_samples` samples."""
        lengths = np.clip(num_samples - self.starts, 0, np.append(np.diff(self.starts), np.inf))
        return [float(value) for value in lengths @ self.weights]

    def _bound(self, tree: Tree, deviation: float) -> float:
        """Return the bound for the sources of a group whose own count is at most `deviation` from its expectation.

        The left part gets f(c) of c samples, rounded, where f is the integral of its share in the group. f is exact
        at the expectation of c, and its slope is at most the largest share. So the left part is at most
        `PHASE + share * deviation` from its own expectation, and so is the right part with its share.
        """
        if isinstance(tree, int):
            return deviation
        group = self._rates(tree)
        shares = [self._rates(part)[group > 0] / group[group > 0] for part in tree]
        return max(
            self._bound(part, PHASE + float(share.max(initial=0.0)) * deviation)
            for part, share in zip(tree, shares, strict=True)
        )

    def _descend(self, tree: Tree, counts: Integers, places: Integers, sources: Integers, ordinals: Integers) -> None:
        if isinstance(tree, int):
            sources[places], ordinals[places] = tree, counts
            return
        # `counts` holds, for each sample, how many samples of this group came before it. The left count has a slope of
        # at most 1, so from c to c + 1 it grows by 0 or 1, and it grows exactly when sample c goes left.
        before = self._left_count(tree, counts)
        left = self._left_count(tree, counts + 1) > before
        self._descend(tree[0], before[left], places[left], sources, ordinals)
        right = ~left
        self._descend(tree[1], (counts - before)[right], places[right], sources, ordinals)

    def _left_count(self, tree: tuple[Tree, Tree], counts: Integers) -> Integers:
        """Return how many of the first `counts` samples of a group go to its left part."""
        group, left = self._rates(tree), self._rates(tree[0])
        shares = np.divide(left, group, out=np.zeros_like(left), where=group > 0)
        lengths = np.diff(self.starts)
        # At which count of the group each segment begins. The segment is looked up by the group's own count, not by
        # the sample index: a group only knows its count, and a part must be a monotone function of that alone.
        group_starts = np.concatenate([[0.0], np.cumsum(group[:-1] * lengths)])
        left_starts = np.concatenate([[0.0], np.cumsum(left[:-1] * lengths)])
        # side="right" steps over segments in which the group has no weight: they have no length here.
        segment = np.searchsorted(group_starts, counts, side="right") - 1 if len(lengths) else 0
        exact = left_starts[segment] + (counts - group_starts[segment]) * shares[segment]
        rounded: Integers = np.floor(exact + PHASE).astype(np.int64)
        return rounded

    def _rates(self, tree: Tree) -> Floats:
        """Return the weight of a group of sources in every segment."""
        total: Floats = self.weights[:, list(leaves(tree))].sum(axis=1)
        return total


def leaves(tree: Tree) -> tuple[int, ...]:
    """Return the sources of a tree."""
    return (tree,) if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[1])


def best_tree(weights: tuple[float, ...]) -> Tree:
    """Return the tree of sources for which `Apportionment` keeps the smallest bound on the deviation of a count.

    For constant weights the bound of a source is `sum of w(source) / w(group)` over the groups that hold it, itself
    included and all sources excluded, times `PHASE`. Up to four sources need two levels, hence stay below
    `2 * PHASE`; beyond six, the search is over trees whose lightest sources are paired first, and not exhaustive.
    """
    groups: list[tuple[float, Tree]] = sorted(((weight, source) for source, weight in enumerate(weights)), key=_weight)
    while len(groups) > EXACT_SEARCH:
        (first, left), (second, right), *rest = groups
        groups = sorted([(first + second, (left, right)), *rest], key=_weight)
    return groups[0][1] if len(groups) == 1 else _search(tuple(groups), 0.0)[1]


def _weight(group: tuple[float, Tree]) -> float:
    return group[0]


@cache
def _search(groups: tuple[tuple[float, Tree], ...], load: float) -> tuple[float, Tree]:
    """Return the best bound, in units of `PHASE`, and its tree.

    `load` is the sum of 1 / w(group) over the groups that hold all of these. A group that was paired before counts as
    one source of its weight.
    """
    if len(groups) == 1:
        weight, tree = groups[0]
        return weight * load, tree
    first, rest = groups[0], groups[1:]
    best: tuple[float, Tree] | None = None
    # `first` is always on the left, since mirrored splits have the same bound; the right is never empty.
    for size in range(len(rest)):
        for chosen in combinations(range(len(rest)), size):
            parts = (
                (first, *(rest[index] for index in chosen)),
                tuple(rest[index] for index in range(len(rest)) if index not in chosen),
            )
            # The lower limit is for parts of weight 0.
            (left_bound, left), (right_bound, right) = (
                _search(part, load + 1 / max(sum(weight for weight, _ in part), 1e-12)) for part in parts
            )
            bound = max(left_bound, right_bound)
            if best is None or bound < best[0]:
                best = bound, (left, right)
    assert best is not None
    return best
