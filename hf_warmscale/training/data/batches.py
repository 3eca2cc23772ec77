"""The samples of a stage as a sized dataset, and the source of each row beside its batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_warmscale.training.data.mixture import ReplayMixture, Row, Rows, ends

Collator = Callable[[list[Row]], dict[str, Any]]

IGNORED = -100
PACKED_COLUMNS = ("input_ids", "position_ids", "labels")

SOURCE_NUMBER = "warmscale_source"
"""The key that carries the number of a source from a row to its batch; the trainer takes it out before the model."""


class StageSamples(Dataset[Row]):
    """The first `num_samples` samples of a mixture, to be read in order."""

    def __init__(self, mixture: ReplayMixture, num_samples: int) -> None:
        self.mixture, self.num_samples = mixture, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        return [{**row, SOURCE_NUMBER: number} for number, row in self.mixture.read(indices)]


def collate_packed(rows: list[Row]) -> dict[str, Tensor]:
    """Stack packed rows, or lay rows of different lengths end to end (`[1, tokens]`), without an attention mask.

    `position_ids` alone tell transformers where documents begin; a mask of ones would let them attend to one another.
    """
    columns = {name: [torch.as_tensor(row[name]) for row in rows] for name in PACKED_COLUMNS}
    even = len({len(row) for row in columns["input_ids"]}) == 1
    return {name: torch.stack(parts) if even else torch.cat(parts)[None] for name, parts in columns.items()}


def is_packed(rows: Rows | ReplayMixture) -> bool:
    """Tell whether rows carry the positions of packed documents."""
    return "position_ids" in rows[0]


class RowCollator:
    """Collate packed rows as `collate_packed`, and all others as another collator does.

    Evaluation data may be packed where training data are not, and the sources of a mixture may differ; a row that
    carries no positions beside one that does is one document.

    Args:
        collator: for batches without packed rows.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        if not any("position_ids" in row for row in rows):
            return self.collator(rows)
        return collate_packed([_with_positions(row) for row in rows])


def _with_positions(row: Row) -> Row:
    """Return a packed row as it is, any other one as a row that holds one document."""
    if "position_ids" in row:
        return row
    labels = torch.as_tensor(row["labels"]).clone()
    labels[:1] = IGNORED  # laid end to end, the row before would have to predict it
    return {**row, "labels": labels, "position_ids": torch.arange(len(labels))}


def refuse_contamination(batch: Mapping[str, Any]) -> None:
    """Refuse a batch in which packed documents attend to one another.

    Raises:
        ValueError: if it has positions that restart and an attention mask that hides nothing.
    """
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if mask is None or positions is None or mask.dim() != 2:
        return
    if bool(mask.all()) and bool((positions[:, 1:] == 0).any()):
        raise ValueError(
            "The collator adds an attention mask of ones to packed rows, so that documents attend to one another; "
            "leave data_collator out."
        )


class SourceCollator:
    """Collate rows as another collator does, and add the number of the source that each came from.

    The sources are `[rows]`; where the collator lays all rows out in one (`[1, tokens]`), they are one per token.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        sources = torch.tensor([row[SOURCE_NUMBER] for row in rows])
        batch = self.collator([{key: value for key, value in row.items() if key != SOURCE_NUMBER} for row in rows])
        input_ids = batch.get("input_ids")
        if input_ids is not None and len(input_ids) != len(rows):
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            sources = torch.repeat_interleave(sources, lengths).reshape(input_ids.shape)
        return {**batch, SOURCE_NUMBER: sources}


def row_length(mixture: ReplayMixture) -> int | None:
    """Return the tokens of every row, or `None` if the first rows of the sources differ."""
    lengths = {len(rows[index]["input_ids"]) for rows in mixture.sources.values() for index in ends(rows)}
    return lengths.pop() if len(lengths) == 1 else None
