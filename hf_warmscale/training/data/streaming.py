"""Streams as sources of a mixture: rows in their own order, from the place that a sample asks for."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import IterableDataset
from torch.utils.data import Dataset

Row = dict[str, Any]

BLOCK = 32
"""Rows that are read ahead."""


class StreamedRows(Dataset[Row]):
    """The first rows of a stream, for a `ReplayMixture`, without a copy on disk.

    Which row a sample is stays a pure function of its index: the n-th sample of this source is row n of the stream, so
    ranks, workers and resumed runs agree. What a stream cannot do, this cannot do either:

    - rows come in the order of the stream, in every pass the same: shuffle the shards beforehand, on the Hub or with
      `stream.shuffle(seed)`, which is fixed by its seed;
    - every rank and every worker reads the whole stream and drops what is not its own;
    - a resumed run reads forward to its place (`IterableDataset.skip`), which takes as long as the stream takes;
    - `num_rows` must be known, and the stream must hold as many.

    Pack what you read more than once (`warmscale data pack`); stream what does not fit a disk.

    Args:
        stream (`IterableDataset`): with `input_ids` and `labels`, see `stream_packed`.
        num_rows (`int`): how many rows a pass takes.

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
        self.stream, self.num_rows = stream, num_rows
        self._rows: Iterator[Row] | None = None
        self._next = 0

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        """Return row `index`: cheap going forward, from the start again going back."""
        if self._rows is None or index < self._next:
            self._rows, self._next = self._from(index), index
        row: Row | None = None
        while self._next <= index:
            row = next(self._rows, None)
            self._next += 1
        if row is None:
            raise ValueError(f"The stream holds no row {index}, and num_rows is {self.num_rows}; lower num_rows.")
        return row

    def _from(self, index: int) -> Iterator[Row]:
        """Read in blocks: read row by row, `datasets` would give each worker a part of the stream only."""
        for block in (self.stream.skip(index) if index else self.stream).iter(batch_size=BLOCK):
            columns = list(block)
            for values in zip(*block.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return several rows, read in the order of the stream."""
        found = {index: self[index] for index in sorted(set(indices))}
        return [found[index] for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open stream behind: every worker opens its own."""
        return {**self.__dict__, "_rows": None, "_next": 0}
