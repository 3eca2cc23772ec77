"""The points that a search begins with: every checkpoint alone, the usual averages, and the greedy soup."""

from collections.abc import Collection, Mapping

from hf_warmscale.merging.search.spaces import Point, Space
from hf_warmscale.merging.weights import LAWA_WINDOW, greedy_soup, subset_weights

Members = frozenset[int]
"""The checkpoints of a uniform average, by index."""


def label_of(members: Members) -> str:
    """Return the label of an average: the indices of its checkpoints (`"0+2"`)."""
    return "+".join(str(index) for index in sorted(members))


def members_of(label: str) -> Members:
    """Return the checkpoints of a label."""
    return frozenset(int(index) for index in label.split("+"))


def fixed_initial_points(count: int) -> list[Members]:
    """Return the last checkpoint, the uniform average, the other checkpoints (latest first), and LAWA."""
    everything = frozenset(range(count))
    earlier = [frozenset([index]) for index in range(count - 2, -1, -1)]
    lawa = frozenset(range(max(0, count - LAWA_WINDOW), count))
    # The last checkpoint first: it is what a user would take without a merge, and the search may be cut short.
    return list(dict.fromkeys([frozenset([count - 1]), everything, *earlier, lawa]))


def next_initial_point(
    space: Space,
    count: int,
    *,
    singles: Mapping[int, float],
    known: Mapping[Members, float],
    running: Collection[Members] = (),
) -> tuple[Members, Point] | None:
    """Return the next initial point, or `None` when all are known, running, or outside the space.

    Args:
        space (`Space`): the space that is searched.
        count (`int`): the number of checkpoints.
        singles (`Mapping[int, float]`): known losses of checkpoints alone, in the space or not; infinite for one whose
            trial failed.
        known (`Mapping[Members, float]`): losses of the averages that are finished; infinite for one that failed.
        running (`Collection[Members]`): averages that some process is scoring.
    """
    for members in fixed_initial_points(count):
        point = space.point(subset_weights(count, members))
        if members not in known and members not in running and point is not None:
            return members, point
    # The greedy soup sorts all checkpoints by their own loss, so it starts when the last one is known.
    if len(singles) < count:
        return None
    members, done = greedy_soup([singles[index] for index in range(count)], known)
    point = None if done or members in running else space.point(subset_weights(count, members))
    return None if point is None else (members, point)
