"""Cut documents into windows and group windows into batches. Integers only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """`length` consecutive predictions in one document: tokens `start + 1 ... start + length` of its sequence."""

    document: int
    start: int
    length: int


Batch = tuple[Window, ...]


def cut_windows(lengths: Iterable[int], max_length: int) -> list[Window]:
    """Cut documents of `lengths` predictions into consecutive windows of `max_length`; the last may be shorter."""
    return [
        Window(document, start, min(max_length, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, max_length)
    ]


def batch_by_length(windows: Iterable[Window], batch_tokens: int) -> list[Batch]:
    """Group windows of similar length, the longest first: at most `batch_tokens` padded positions, or one window.

    The longest batch comes first so that a lack of memory shows at once.
    """
    left = sorted(windows, key=lambda window: (-window.length, window.document, window.start))
    batches = []
    while left:
        # The first window is the longest of those left, so the batch is padded to its length.
        size = max(1, batch_tokens // left[0].length)
        batches.append(tuple(left[:size]))
        left = left[size:]
    return batches


def share(batches: Sequence[Batch], rank: int, world_size: int) -> list[Batch]:
    """Return the batches of one process: all processes get equally many, some of them empty."""
    mine = list(batches[rank::world_size])
    rounds = -(-len(batches) // world_size)
    # Equal numbers, because a forward pass of a sharded model is a collective call.
    return mine + [()] * (rounds - len(mine))
