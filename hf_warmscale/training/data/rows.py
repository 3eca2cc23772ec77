"""Rows of a source: how they are read, and by what they are known again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hf_warmscale.training.data.streaming import StreamedRows

Row = dict[str, Any]

HASHED_ROWS = 1_024
"""Rows in the hash of a source: all of a small source, else rows at even distances."""


@runtime_checkable
class Rows(Protocol):
    """A map-style dataset: `datasets.Dataset`, a torch dataset, a list of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def fetch(rows: Rows, indices: list[int]) -> list[Row]:
    """Return rows together where the dataset can: for `datasets` it is several times faster than one by one."""
    together = getattr(rows, "__getitems__", None)
    return [rows[index] for index in indices] if together is None else list(together(indices))


def is_streamed(rows: Rows) -> bool:
    """Tell whether rows are read in their own order, see `StreamedRows`; looking at the last one would read all."""
    return isinstance(rows, StreamedRows)


def ends(rows: Rows) -> tuple[int, ...]:
    """Return the first row and, where it is cheap to read, the last."""
    return (0,) if is_streamed(rows) else (0, len(rows) - 1)


def fingerprint(rows: Rows) -> str:
    """Return a short hash of the number of rows and of the first and the last row."""
    digest = hashlib.blake2b(str(len(rows)).encode(), digest_size=8)
    for index in ends(rows):
        digest.update(json.dumps(rows[index], sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def content(rows: Rows) -> str:
    """Return a short hash of up to `HASHED_ROWS` rows, the same for lists, arrays and tensors."""
    digest = hashlib.blake2b(digest_size=8)
    places = np.linspace(0, len(rows) - 1, min(len(rows), HASHED_ROWS)).round().astype(int)
    for row in fetch(rows, places.tolist()):
        for name, value in sorted(row.items()):
            digest.update(name.encode())
            digest.update(_as_bytes(value))
    return digest.hexdigest()


def identity(rows: Rows) -> dict[str, Any]:
    """Return what identifies the rows of a source; of a stream, only the first row is read."""
    found = {"rows": len(rows), "fingerprint": fingerprint(rows)}
    return found if is_streamed(rows) else {**found, "content": content(rows)}


def refuse_other_rows(name: str, rows: Rows, saved: Mapping[str, Any]) -> None:
    """Refuse rows that are not those of a saved description.

    Raises:
        ValueError: naming the source.
    """
    if len(rows) != saved["rows"]:
        raise ValueError(
            f"The source {name!r} has {len(rows)} rows and the checkpoint saw {saved['rows']}; give it the same data."
        )
    found = identity(rows)
    if any(found[key] != saved[key] for key in found if key in saved):
        raise ValueError(f"The source {name!r} holds other rows than the checkpoint saw; give it the same data.")


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", errors="surrogatepass")
    array = np.asarray(value)
    # Packed rows are int32 on disk and int64 as tensors: both must give one hash.
    if array.dtype.kind in "iub":
        return array.astype(np.int64).tobytes()
    if array.dtype.kind == "f":
        return array.astype(np.float64).tobytes()
    return json.dumps(value, sort_keys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
