"""How documents are cut into windows, and windows put into batches. Integers only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """`length` predictions in a row within one document: tokens `start + 1 ... start + length` of its sequence."""

    document: int
    start: int
    length: int


Batch = tuple[Window, ...]


def cut(lengths: Iterable[int], max_length: int) -> list[Window]:
    """Cut documents of so many predictions into windows of `max_length`, one after another; the last is shorter."""
    return [
        Window(document, start, min(max_length, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, max_length)
    ]


def batch_by_length(windows: Iterable[Window], batch_tokens: int) -> list[Batch]:
    """Put windows of like length together, the longest first; `batch_tokens` positions with padding, or one window."""
    left = sorted(windows, key=lambda window: (-window.length, window.document, window.start))
    batches = []
    while left:
        size = max(1, batch_tokens // left[0].length)
        batches.append(tuple(left[:size]))
        left = left[size:]
    return batches


def share(batches: Sequence[Batch], rank: int, world_size: int) -> list[Batch]:
    """Return the batches of one of several processes: the same number for each, the spare ones empty."""
    mine = list(batches[rank::world_size])
    rounds = -(-len(batches) // world_size)
    return mine + [()] * (rounds - len(mine))
