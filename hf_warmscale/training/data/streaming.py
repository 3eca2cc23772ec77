"""A stream as a source of a mixture: its rows in its own order, found by their index."""

import os
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import Dataset

from hf_warmscale.compat.datasets import is_split_by_node

Row = dict[str, Any]

BLOCK = 32
"""Rows read ahead."""

_inherited: list[Generator[Row]] = []
"""Readers that a forked worker got from its parent: it must neither use nor close them, so they are kept alive."""


class StreamedRows(Dataset[Row]):
    """The first rows of a stream, for a `ReplayMixture`, without a copy on disk.

    The row of a sample stays a pure function of its index: the n-th sample of this source is row n of the stream. So
    ranks, workers and resumed runs agree. The price:

    - rows come in the order of the stream, the same in every pass: shuffle the shards on the Hub, or call
      `stream.shuffle(seed)`, whose order depends on its seed alone;
    - every rank and every worker reads the whole stream and drops the rows of the others;
    - a resumed run reads forward to its place (`IterableDataset.skip`), as fast as the stream can be read;
    - `num_rows` must be given, and the stream must hold as many.

    Pack what you read more than once (`warmscale data pack`); stream what does not fit on a disk.

    Args:
        stream (`IterableDataset`): with `input_ids` and `labels`, see `stream_packed`; in any format.
        num_rows (`int`): rows in a pass.

    Raises:
        ValueError: if the stream is split by rank, is not a `datasets.IterableDataset`, or `num_rows` is not positive.

    Example:

    ```python
    >>> web = load_dataset("HuggingFaceFW/fineweb", split="train", streaming=True)
    >>> rows = StreamedRows(stream_packed(web, tokenizer, sequence_length=2048), num_rows=1_000_000)
    >>> mixture = ReplayMixture({"web": rows, "english": english}, {"web": 0.95, "english": 0.05})
    ```
    """

    def __init__(self, stream: IterableDataset, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; a stream needs at least one row.")
        refuse_partial(stream)
        self.stream, self.num_rows = stream, num_rows
        self._first: Row | None = None
        self._rows: Generator[Row] | None = None
        self._next, self._process = 0, os.getpid()

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        """Return row `index`. Reading forward is cheap; reading backward starts the stream again."""
        # Row 0 has a path of its own and leaves the open reader where it is.
        if index == 0:
            return self._first_row()
        self._leave_inherited_reader()
        if self._rows is None or index < self._next:
            # A stream cannot go back; a new reader skips forward from the beginning.
            self._rows, self._next = self._from(index), index
        row: Row | None = None
        while self._next <= index:
            row = next(self._rows, None)
            self._next += 1
        return self._found(row, index)

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return several rows, read in the order of the stream."""
        found = {index: self[index] for index in sorted(set(indices))}
        return [found[index] for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open reader: a spawned worker opens its own."""
        return {**self.__dict__, "_rows": None, "_next": 0}

    def _first_row(self) -> Row:
        """Read row 0 by itself, once. A trainer looks at it before its workers start, and must leave no file open."""
        if self._first is None:
            rows = self._from(0)
            self._first = self._found(next(rows, None), 0)
            rows.close()
        return dict(self._first)

    def _leave_inherited_reader(self) -> None:
        """After a fork, open a new reader: the inherited one shares its file position with the parent process.

        Closing it would wait for the threads that read ahead for it, and those do not exist in a forked process.
        """
        if self._process != os.getpid():
            if self._rows is not None:
                _inherited.append(self._rows)
            self._rows, self._process = None, os.getpid()

    def _from(self, index: int) -> Generator[Row]:
        """Read on from a row. Only `iter` gives every worker all rows; `for row in stream` would split them."""
        stream = self.stream.skip(index) if index else self.stream
        for block in stream.iter(batch_size=BLOCK):
            columns = list(block)
            for values in zip(*block.values(), strict=True):
                yield {column: as_int64(value) for column, value in zip(columns, values, strict=True)}

    def _found(self, row: Row | None, index: int) -> Row:
        if row is None:
            raise ValueError(f"The stream ends before row {index}, but num_rows is {self.num_rows}; lower num_rows.")
        return row


def refuse_partial(stream: Any) -> None:
    """Refuse what does not give every process all rows.

    Raises:
        ValueError: for a stream that was split by rank, and for any iterable but that of `datasets`.
    """
    if not isinstance(stream, IterableDataset):
        raise ValueError(
            f"The stream is a {type(stream).__name__}, whose rows cannot be found by index; wrap it with "
            "datasets.IterableDataset.from_generator."
        )
    if is_split_by_node(stream):
        raise ValueError(
            "The stream was split with split_dataset_by_node, but a mixture gives each rank its own rows of the whole "
            "stream; leave the split out."
        )


def as_int64(value: Any) -> Any:
    """Widen integer tensors and arrays: packed rows are stored as int32, and a loss needs int64 labels."""
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value.long()
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        return value.astype(np.int64)
    if isinstance(value, list) and value and isinstance(value[0], np.integer):
        return np.asarray(value, dtype=np.int64)
    return value
