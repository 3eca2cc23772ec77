"""From rows to batches: packed documents that stay apart, and the source of each row."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import default_data_collator

from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.training.data.batches import PACKED_COLUMNS, SOURCE_NUMBER, is_packed
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.rows import Row, Rows, is_streamed
from hf_warmscale.training.data.separation import Layout, Separation, separation_of

Collator = Callable[[list[Row]], dict[str, Any]]

LOOKED_AT = 8
"""Rows of a source that are looked at before training; every batch is checked later."""


class RowCollator:
    """Collate packed rows in a layout that keeps their documents apart, and pass all other rows to another collator.

    Evaluation data may be packed where training data are not, and the sources of a mixture may differ. A row without
    positions beside a packed one is one document.

    Args:
        collator: for batches without packed rows.
        separation (`Separation`, *optional*): the layouts that are safe for the model. With one, every row that has
            labels is collated here; without one, packed rows are stacked, or laid end to end if they are uneven.
    """

    def __init__(self, collator: Collator, separation: Separation | None = None) -> None:
        self.collator, self.separation = collator, separation

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        expected = self.separation is not None and all("labels" in row for row in rows)
        if not expected and not any("position_ids" in row for row in rows):
            return self.collator(rows)
        return collate_packed([_as_document(row) for row in rows], self.separation)


def collate_packed(rows: list[Row], separation: Separation | None = None) -> dict[str, Tensor]:
    """Collate packed rows without an attention mask: `position_ids` alone say where documents begin.

    Rows of one length are stacked, `[rows, tokens]`; others are laid end to end, `[1, tokens]`. With a `separation`,
    only a layout that is safe for the model is used. Where none is, rows that hold one document each are padded.

    Raises:
        ValueError: if a row holds several documents and no layout keeps them apart in the model.
    """
    columns = {name: [torch.as_tensor(row[name]).long() for row in rows] for name in PACKED_COLUMNS}
    even = len({len(row) for row in columns["input_ids"]}) == 1
    # Stacked rows are preferred: end to end, attention without a varlen kernel computes one [tokens, tokens] square
    # for the whole batch instead of one per row. Uneven rows cannot be stacked without padding.
    wanted: tuple[Layout, ...] = ("rows", "end_to_end") if even else ("end_to_end",)
    layout = next((each for each in wanted if separation is None or separation.holds_for(each)), None)
    if layout == "rows":
        return {name: torch.stack(parts) for name, parts in columns.items()}
    if layout == "end_to_end":
        return {name: torch.cat(parts)[None] for name, parts in columns.items()}
    assert separation is not None
    if any(map(_restarts, columns["position_ids"])):
        raise ValueError(inseparable(separation))
    # `position_ids` are left out: every row is one document from position 0, which is what a model assumes.
    return _padded(columns["input_ids"], columns["labels"])


def packed_sources(*data: Any) -> dict[str, Rows]:
    """Return the packed ones among data sets, mixtures and mappings of data sets, by name."""
    found: dict[str, Rows] = {}
    for number, rows in enumerate(data):
        if isinstance(rows, ReplayMixture | Mapping):
            named = rows.sources if isinstance(rows, ReplayMixture) else rows
        else:
            named = {str(number): rows}
        # A stream without a length has no first row that could be looked at.
        found |= {
            name: each for name, each in named.items() if isinstance(each, Rows) and len(each) and is_packed(each)
        }
    return found


def packed_collator(sources: Mapping[str, Rows], model: nn.Module | None) -> RowCollator:
    """Return the collator of packed rows in a layout that is safe for the model.

    Raises:
        ValueError: if there is none, see `refuse_inseparable`.
    """
    separation = separation_of(model)
    refuse_inseparable(sources, separation)
    return RowCollator(default_data_collator, separation)


def refuse_inseparable(sources: Mapping[str, Rows], separation: Separation | None) -> None:
    """Refuse data whose rows hold several documents if no layout keeps them apart in the model.

    Raises:
        ValueError: naming the family and what to do.
    """
    if separation is None or separation.layout is not None:
        return
    for rows in sources.values():
        looked_at = (0,) if is_streamed(rows) else range(min(len(rows), LOOKED_AT))
        if any(_restarts(rows[index]["position_ids"]) for index in looked_at):
            raise ValueError(inseparable(separation))


def refuse_contamination(batch: Mapping[str, Any], prove: Callable[[], Separation | None]) -> None:
    """Refuse a batch in which packed documents see one another, whatever collator made it.

    Args:
        batch (`Mapping`): with `position_ids` of `[rows, tokens]`, if it is packed.
        prove (`Callable`): returns the separation for the model; called for packed batches only.

    Raises:
        ValueError: if an attention mask of ones hides where documents begin, or the layout is not safe for the model.
    """
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if positions is None or positions.dim() != 2 or not bool((positions[:, 1:] == 0).any()):
        return
    if mask is not None and mask.dim() != 2:  # a mask of its own, which may well be right
        return
    # A mask of ones is the trap: it looks harmless, but with any mask given, transformers no longer derives the
    # documents from `position_ids`.
    if mask is not None and bool(mask.all()):
        raise ValueError(
            "The collator adds an attention mask of ones to packed rows, so their documents attend to one another; "
            "leave data_collator out."
        )
    separation = prove()
    layout: Layout = "end_to_end" if len(positions) == 1 else "rows"
    if separation is None or separation.holds_for(layout):
        return
    if separation.layout is None:
        raise ValueError(inseparable(separation))
    raise ValueError(
        f"The collator makes {layout} batches of packed rows, in which {separation.family} models with "
        f"{separation.attention} attention mix documents; leave data_collator out."
    )


def inseparable(separation: Separation) -> str:
    """Return the sentence that refuses packed rows for a model."""
    return (
        f"{separation.family} models with {separation.attention} attention cannot train on rows that hold several "
        f"documents: {separation.reason()}; pack one document per row (warmscale data pack --padding-free), or load "
        "the model with another attn_implementation."
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
        # A batch of one row may be in either layout, and both agree on it.
        if input_ids is not None and len(input_ids) != len(rows):
            lengths = torch.tensor([num_tokens(row) for row in rows])
            sources = torch.repeat_interleave(sources, lengths).reshape(input_ids.shape)
        return {**batch, SOURCE_NUMBER: sources}


def _as_document(row: Row) -> Row:
    """Return a packed row as it is, any other one as a row that holds one document, without its padding."""
    if "position_ids" in row:
        return row
    tokens, labels = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["labels"]).clone()
    if "attention_mask" in row:
        real = torch.as_tensor(row["attention_mask"]).bool()
        tokens, labels = tokens[real], labels[real]
    labels[:1] = IGNORE_INDEX  # laid end to end, the row before would have to predict it
    return {"input_ids": tokens, "labels": labels, "position_ids": torch.arange(len(labels))}


def num_tokens(row: Row) -> int:
    """Return the tokens of a row that are not padding."""
    return int(
        torch.as_tensor(row["attention_mask"] if "attention_mask" in row else [1] * len(row["input_ids"])).sum()
    )


def _restarts(positions: Any) -> bool:
    """Tell whether a row holds several documents."""
    return bool((torch.as_tensor(positions)[1:] == 0).any())


def _padded(tokens: Iterable[Tensor], labels: Iterable[Tensor]) -> dict[str, Tensor]:
    """Pad rows on the right; a causal model never sees padding that comes later."""

    def pad(rows: Iterable[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

    tokens = list(tokens)
    mask = pad((torch.ones_like(row) for row in tokens), 0)
    return {"input_ids": pad(tokens, 0), "labels": pad(labels, IGNORE_INDEX), "attention_mask": mask}
