"""Numbers as people write them (360M, 5B, 1e21), and columns under other names (N=params)."""

import argparse
import re

NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)([KMBT]?)")
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def quantity(text: str) -> float:
    """Read a positive number such as `360M`, `5B` or `1e21`."""
    match = NUMBER.fullmatch(text)
    value = float(match[1]) * UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number; write it as 360M, 5B or 1e21")
    return value


def whole(text: str) -> int:
    """Read a positive number as a whole one."""
    return round(quantity(text))


def model(text: str) -> str | int:
    """Read a model: a number of parameters, or the name of a checkpoint."""
    return whole(text) if NUMBER.fullmatch(text) else text


def candidate(text: str) -> tuple[str | int, float | None]:
    """Read a model that exists and its tokens: `135M:2T`, `MODEL:2T`, or the folder of a run."""
    source, colon, tokens = text.rpartition(":")
    if not colon:
        return model(text), None
    return model(source), quantity(tokens)


def column(text: str) -> tuple[str, str]:
    """Read a column under another name: `N=params`."""
    ours, equals, theirs = text.partition("=")
    if not equals or not theirs:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form N=NAME_IN_THE_FILE")
    return ours, theirs


def parameter(text: str) -> tuple[str, float]:
    """Read a parameter that is held: `alpha=0.35`."""
    name, value = column(text)
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number for {name}") from error
