"""The measurements that a law is fitted to: read, checked, and reduced to points that belong together."""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hf_warmscale.options import LawForm
from hf_warmscale.scaling.laws import Array

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str]
"""A table: columns by name (a dictionary, a pandas DataFrame), rows, or a CSV, JSON or JSON lines file."""

NEEDED: dict[LawForm, tuple[str, ...]] = {
    "power": ("N", "loss"),
    "chinchilla": ("N", "D", "loss"),
    "grown": ("N", "D", "loss", "D0", "N0"),
}

SAME_DATA = 1.01
"""Budgets of tokens that differ by less than this factor count as one."""


@dataclass(frozen=True)
class Frame:
    """Points of loss measurements.

    Args:
        N, D, loss (`[points]`): parameters, training tokens, loss.
        D0, N0 (`[points]`): tokens and parameters of the base that was grown, 0 for a model from scratch.
        run (`tuple[str, ...]`): the run of each point; points of one run are not independent.
        part (`tuple[str, ...]`): `"cooled"`, or another `Part` of `RunFolder`; `""` if unknown.
        recipe (`tuple[str, ...]`): the recipe of each point; `""` if unknown.
        embeddings (`bool` or `None`): whether N counts embeddings; `None` if unknown.

    Example:

    ```python
    >>> frame = make_frame("losses.csv", "chinchilla")
    >>> len(frame), len(frame.where(frame.D < 1e9))
    (15, 5)
    ```
    """

    N: Array
    D: Array
    loss: Array
    D0: Array
    N0: Array
    run: tuple[str, ...]
    part: tuple[str, ...]
    recipe: tuple[str, ...]
    embeddings: bool | None = None

    def __len__(self) -> int:
        return len(self.N)

    def where(self, mask: NDArray[np.bool_]) -> "Frame":
        """Return the points of a mask."""
        kept = np.flatnonzero(mask)
        run, part, recipe = (tuple(label[place] for place in kept) for label in (self.run, self.part, self.recipe))
        n, d, loss, d0, n0 = (values[kept] for values in (self.N, self.D, self.loss, self.D0, self.N0))
        return Frame(n, d, loss, d0, n0, run, part, recipe, self.embeddings)

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as rows, ready for JSON."""
        names = ("N", "D", "loss", "D0", "N0", "run", "part", "recipe")
        columns = [getattr(self, name) for name in names]
        plain = [list(map(float, column)) if isinstance(column, np.ndarray) else list(column) for column in columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*plain, strict=True)]


def read_table(path: str | os.PathLike[str], columns: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a CSV, JSON or JSON lines file.

    Args:
        path (`str` or `PathLike`): ends with `.csv`, `.json` (a list of rows) or `.jsonl`.
        columns (`Mapping[str, str]`, *optional*): for each column of ours (`"N"`) the name that it has in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a table, or lacks a column that `columns` names.

    Example:

    ```python
    >>> Path("runs.csv").write_text("params,D,loss\\n1e7,1e9,3.5\\n")
    26
    >>> read_table("runs.csv", {"N": "params"})[0]["N"]
    '1e7'
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; name a CSV, JSON or JSON lines file, or folders of runs.")
    rows = _parsed(path)
    renamed = dict(columns or {})
    for ours, theirs in renamed.items():
        if any(theirs not in row for row in rows):
            known = ", ".join(dict.fromkeys(chain.from_iterable(rows)))
            raise ValueError(f"{path.name} has no column {theirs!r} for {ours}; its columns are {known}.")
    return [{**row, **{ours: row[theirs] for ours, theirs in renamed.items()}} for row in rows]


def make_frame(table: "Rows | Frame", form: LawForm, *, embeddings: bool | None = None) -> Frame:
    """Return the checked frame of a table.

    Args:
        table (`Rows` or `Frame`): columns `N`, `D`, `loss`, optionally `run`, `part` (or `cooled`), `recipe` and
            `embeddings`, and for a grown model `D0` and `N0`.
        form (`str`): the form that is to be fitted; decides which columns are needed.
        embeddings (`bool`, *optional*): whether N counts the embeddings, where the table has no such column.

    Raises:
        ValueError: for missing columns, values that are not positive numbers, and points that occur twice.

    Example:

    ```python
    >>> frame = make_frame([{"N": 1e7, "D": 1e9, "loss": 3.5}, {"N": 2e7, "D": 1e9, "loss": 3.3}], "chinchilla")
    >>> frame.loss.tolist()
    [3.5, 3.3]
    ```
    """
    if isinstance(table, Frame):
        return table if embeddings is None else replace(table, embeddings=embeddings)
    columns = _columns(table)
    missing = [name for name in NEEDED[form] if name not in columns]
    if missing:
        raise ValueError(
            f"The table has no column {', '.join(missing)}, which the form {form!r} needs; its columns are "
            f"{', '.join(columns) or 'none'}."
        )
    count = len(columns["N"])
    if count == 0:
        raise ValueError("The table has no rows; give at least one measurement per size.")
    frame = Frame(
        N=_positive("N", columns["N"]),
        D=_positive("D", columns["D"]) if "D" in columns else np.ones(count),
        loss=_positive("loss", columns["loss"]),
        D0=_base("D0", columns, count),
        N0=_base("N0", columns, count),
        run=_labels(columns, "run", [f"row {number}" for number in range(1, count + 1)]),
        part=_parts(columns, count),
        recipe=_labels(columns, "recipe", [""] * count),
        embeddings=_embeddings(columns, embeddings),
    )
    _refuse_repeated(frame, named="run" in columns)
    if ((frame.D0 > 0) != (frame.N0 > 0)).any():
        raise ValueError("A row has one of D0 and N0 without the other; a grown model needs both, others neither.")
    if form == "power" and frame.D.max() > SAME_DATA * frame.D.min():
        raise ValueError(
            f"The form 'power' is a law at fixed data, and D goes from {frame.D.min():.4g} to {frame.D.max():.4g} "
            "tokens; use form='chinchilla', or keep one D."
        )
    return frame


def run_numbers(frame: Frame) -> NDArray[np.int64]:
    """Return the number of the run of each point, from 0."""
    numbers: NDArray[np.int64] = np.unique(np.array(frame.run), return_inverse=True)[1]
    return numbers


def _parsed(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return [dict(row) for row in csv.DictReader(text.splitlines())]
    try:
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise ValueError(f"{path} is neither a .csv, nor a .json list, nor .jsonl lines ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is not a list of rows; write one JSON object per measurement.")
    return rows


def _columns(table: Rows) -> dict[str, list[Any]]:
    if isinstance(table, str | os.PathLike):
        table = read_table(table)
    if isinstance(table, Sequence):
        rows = cast(Sequence[Mapping[str, Any]], table)
        names = dict.fromkeys(chain.from_iterable(rows))
        return {name: [row.get(name) for row in rows] for name in names}
    columns = cast(Mapping[str, Iterable[Any]], table)  # a pandas DataFrame is iterated and indexed like a mapping
    return {str(name): list(columns[name]) for name in columns}


def _positive(name: str, values: Sequence[Any]) -> Array:
    numbers = _numbers(name, values)
    for row, value in enumerate(numbers, 1):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} in row {row} is {value:g}; it must be a positive number, so correct or drop it.")
    return numbers


def _base(name: str, columns: Mapping[str, Sequence[Any]], count: int) -> Array:
    """Return a column of the base: empty cells are models from scratch."""
    values = [0.0 if value in (None, "") else value for value in columns.get(name, [0.0] * count)]
    numbers = _numbers(name, values)
    numbers[np.isnan(numbers)] = 0.0  # pandas reads an empty cell as NaN
    for row, value in enumerate(numbers, 1):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} in row {row} is {value:g}; use 0 for a model from scratch.")
    return numbers


def _numbers(name: str, values: Sequence[Any]) -> Array:
    numbers = np.empty(len(values))
    for row, value in enumerate(values, 1):
        try:
            numbers[row - 1] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} in row {row} is {value!r}, not a number; correct or drop it.") from error
    return numbers


def _labels(columns: Mapping[str, Sequence[Any]], name: str, otherwise: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(value) for value in columns.get(name, otherwise))


def _parts(columns: Mapping[str, Sequence[Any]], count: int) -> tuple[str, ...]:
    if "part" in columns or "cooled" not in columns:
        return _labels(columns, "part", [""] * count)
    return tuple("cooled" if str(value).lower() in ("1", "1.0", "true", "yes") else "" for value in columns["cooled"])


def _embeddings(columns: Mapping[str, Sequence[Any]], given: bool | None) -> bool | None:
    found = {str(value).lower() in ("1", "1.0", "true", "yes") for value in columns.get("embeddings", [])}
    if len(found) > 1:
        raise ValueError("N counts the embeddings in some rows and not in others; count them the same way everywhere.")
    return found.pop() if found else given


def _refuse_repeated(frame: Frame, *, named: bool) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    # Without names of runs, equal losses to the last digit tell a repeated row from a second seed.
    for row, key in enumerate(zip(frame.run if named else frame.loss, frame.N, frame.D, frame.D0, strict=True), 1):
        if key in seen:
            what = f"the run {key[0]!r}" if named else "one measurement"
            raise ValueError(
                f"Rows {seen[key]} and {row} are {what} at the same size and tokens; keep one of them, or give "
                "runs of different seeds different names in a column run."
            )
        seen[key] = row
