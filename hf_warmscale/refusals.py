"""Refusals that several rooms share: an unknown name, a DeepSpeed block that would undo our parameter groups.

And the names in them: a sentence calls a model as the user did, not by its folder in the Hub cache.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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


def refuse_deepspeed_blocks(config: Mapping[str, Any], *blocks: str) -> None:
    """Refuse a DeepSpeed configuration that brings its own optimizer or scheduler.

    DeepSpeed would put all parameters into one group, and so drop their learning rates, or ignore our schedule.

    Args:
        config (`Mapping`): the DeepSpeed configuration.
        blocks (`str`): which of `"optimizer"` and `"scheduler"` to refuse.

    Raises:
        ValueError: naming the block.
    """
    effects = {"optimizer": "replaces the parameter groups by a single one", "scheduler": "replaces the schedule"}
    for block in blocks:
        if block in config:
            raise ValueError(
                f"The DeepSpeed configuration has a block {block!r}, which silently {effects[block]}; remove it."
            )


_typed: dict[str, str] = {}
"""Folders of the Hub cache, and what the user typed for them."""


def remember_name(folder: Path, name: str) -> None:
    """Let sentences call a folder of the Hub cache by the id (and revision) that the user typed."""
    _typed[str(folder)] = name


def with_typed_names(text: str) -> str:
    """Return a sentence with the names that the user typed in place of folders of the Hub cache.

    Example:

    ```python
    >>> remember_name(Path("/cache/models--me--small/snapshots/5f1d"), "me/small@v1")
    >>> with_typed_names("/cache/models--me--small/snapshots/5f1d has no config.json.")
    'me/small@v1 has no config.json.'
    ```
    """
    for folder, name in _typed.items():
        text = text.replace(folder, name)
    return text


@contextmanager
def names_as_typed() -> Iterator[None]:
    """Raise refusals with the names that the user typed, see `with_typed_names`."""
    try:
        yield
    except (ValueError, OSError) as error:
        told = with_typed_names(str(error))
        # An error that a library made may hold more than its text, so only plain ones are made anew.
        if told == str(error) or type(error) not in (ValueError, FileNotFoundError, OSError):
            raise
        raise type(error)(told) from error
