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
    """Return a Markdown table whose columns are the keys of the first row."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(format_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def print_table(rows: Sequence[Row], *, title: str | None = None, console: Console | None = None) -> None:
    """Print rows as a table on standard output; numbers are right-aligned."""
    if not rows:
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in rows[0]:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(format_cell(row.get(column)) for column in rows[0]))
    (console or Console()).print(table)
