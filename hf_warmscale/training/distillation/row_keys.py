"""Keys by which a cache finds the rows of a batch: hashes of what a teacher's predictions depend on, with lengths."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_warmscale.training.data.collators import Collator
from hf_warmscale.training.data.rows import Row

ROW_KEYS = "warmscale_row_keys"
"""The key that carries the keys of the rows with a batch; the trainer takes it out before the model."""

KEY_BYTES = 8
ABSENT = 0
"""The key of a row that nobody asks about."""


class KeyedCollator:
    """Collate rows as another collator does, and add their keys: after it, rows may lie end to end."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        return {**self.collator(rows), ROW_KEYS: torch.tensor([[row_key(row), row_length(row)] for row in rows])}


def only_heard(keys: Tensor, heard: Tensor) -> Tensor:
    """Return the keys with `ABSENT` for the rows that a teacher is not heard on.

    Args:
        keys (`Tensor`): key and length of each row, `[rows, 2]`.
        heard (`Tensor`): bool, `[rows]`, or `[1, tokens]` for rows that are laid end to end.
    """
    if heard.dim() == 2:
        heard = heard[0, keys[:, 1].cumsum(0) - keys[:, 1]]  # at the first token of each row
    return torch.stack([keys[:, 0].where(heard, ABSENT), keys[:, 1]], dim=1)


def row_length(row: Mapping[str, Any]) -> int:
    """Return the tokens of a row that are not padding."""
    return int(np.sum(np.asarray(row["attention_mask"]))) if "attention_mask" in row else len(row["input_ids"])


def row_key(row: Mapping[str, Any]) -> int:
    """Return a hash of what a row's predictions depend on: its tokens without padding, and where documents begin."""
    tokens = np.asarray(row["input_ids"], dtype=np.int64)
    kept = np.asarray(row.get("attention_mask", np.ones_like(tokens)), dtype=bool)
    digest = blake2b(tokens[kept].tobytes(), digest_size=KEY_BYTES)
    if "position_ids" in row:
        begins = np.flatnonzero(np.asarray(row["position_ids"])[kept][1:] == 0)
        digest.update(begins.astype(np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def keys_of_batch(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return key and length of the rows of a batch `[rows, tokens]`, `[rows, 2]`."""
    columns = {name: value.cpu().numpy() for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    rows = [{name: value[row] for name, value in columns.items()} for row in range(len(inputs["input_ids"]))]
    return torch.tensor([[row_key(row), row_length(row)] for row in rows])
