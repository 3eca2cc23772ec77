"""Say which name is unknown, and which one was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 12
"""Known values that a sentence can hold."""


def refuse_unknown(what: str, value: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` that names the nearest known value if `value` is not known."""
    known = list(known)
    if value in known:
        return
    near = get_close_matches(value, known, n=1)
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known[:LISTED])}{more}."
    raise ValueError(f"There is no {what} {value!r}; {hint}")
