"""Tables for people: Markdown for files, rich for the terminal. Knows no operation."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

Row = Mapping[str, object]


def format_cell(value: object) -> str:
    """Format a number as people read it: floats with four significant digits, integers with thousands separators."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table whose columns are the keys of the first row.

    Args:
        rows (`Sequence[Mapping[str, object]]`): the cells of each row by column; a missing one is shown as `-`.

    Example:

    ```python
    >>> print(markdown_table([{"model": "base", "nll": 3.51234}, {"model": "grown", "nll": 3.4}]))
    | model | nll |
    |---|---|
    | base | 3.512 |
    | grown | 3.4 |
    ```
    """
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(format_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def print_table(rows: Sequence[Row], *, title: str | None = None, console: Console | None = None) -> None:
    """Print rows as a table on standard output; numbers are right-aligned.

    Args:
        rows (`Sequence[Mapping[str, object]]`): the cells of each row by column; nothing is printed without rows.
        title (`str`, *optional*): a line above the table.
        console (`rich.console.Console`, *optional*): where to print; standard output by default.

    Example:

    ```python
    >>> print_table([{"model": "base", "tokens": 20_000_000}, {"model": "grown", "tokens": 5_000_000}])
    ```
    """
    if not rows:
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in rows[0]:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(format_cell(row.get(column)) for column in rows[0]))
    (console or Console()).print(table)
