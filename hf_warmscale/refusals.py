"""Refusals that several rooms share: an unknown name, a DeepSpeed block that would undo our parameter groups."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
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
