"""The checks by name, the machine that they run on, and the record of one of them."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Figures = dict[str, Any]


class SkippedError(Exception):
    """The machine lacks what a check needs; the message says what."""


@dataclass(frozen=True)
class Machine:
    """Where the checks run.

    Args:
        device (`torch.device`): the one under test.
        tiny (`bool`): models of a few thousand weights, to try the checks themselves on a CPU.
    """

    device: torch.device
    tiny: bool = False

    def clock(self) -> float:
        """Return the wall time in seconds after all work on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_gib(self) -> float | None:
        """Return the most memory that tensors have had on the device since the last call, in GiB."""
        if self.device.type != "cuda":
            return None
        torch.cuda.init()  # before the first tensor there are no statistics that could be reset
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 3)


Check = Callable[[Machine, Figures], None]
"""Fills in its figures as it goes, and raises an error where something does not hold."""

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under the name of its function."""
    CHECKS[function.__name__] = function
    return function


def record(name: str, machine: Machine) -> dict[str, Any]:
    """Run a check and return its record; the figures before a failure are kept."""
    started, figures = time.perf_counter(), Figures()
    outcome: dict[str, Any] = {"name": name, "status": "passed"}
    try:
        CHECKS[name](machine, figures)
    except SkippedError as reason:
        outcome |= {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # whatever a library raises on this device: the other checks go on
        traceback.print_exc()
        outcome |= {"status": "failed", "error": one_sentence(error)}
    finite = json.loads(json.dumps(figures), parse_constant=str)  # JSON has no NaN
    return {**outcome, "seconds": round(time.perf_counter() - started, 2), "figures": finite}


def one_sentence(error: BaseException) -> str:
    """Return the first line of an error, with its type."""
    line = next(iter(str(error).strip().splitlines()), "no message")
    return line if isinstance(error, AssertionError) else f"{type(error).__name__}: {line}"


def require(holds: bool, sentence: str) -> None:
    """Fail with a sentence where something does not hold; unlike `assert` it says what was found."""
    if not holds:
        raise AssertionError(sentence)


def bar_of(dtype: torch.dtype) -> float:
    """Return the share of a step's loss that rounding may change.

    A rounding of bf16 itself: the loss is a mean of many. In float32 the bar is that of a growth's receipt, the square
    root of the rounding, for Adam amplifies differences from step to step.
    """
    rounding = torch.finfo(dtype).eps
    return rounding if dtype == torch.bfloat16 else rounding**0.5


def require_same_losses(
    what: str, found: Sequence[float], expected: Sequence[float], dtype: torch.dtype, figures: Figures
) -> None:
    """Note the losses of both, and require the largest relative difference to be rounding; they must have fallen."""
    require(len(found) == len(expected), f"{what}: {len(found)} losses instead of {len(expected)}.")
    ratios = torch.tensor(found, dtype=torch.float64) / torch.tensor(expected, dtype=torch.float64)
    difference, bar = float((ratios - 1).abs().max()), bar_of(dtype)  # unlike Python's, this maximum keeps a NaN
    figures[what] = {"losses": list(found), "expected": list(expected), "difference": difference, "bar": bar}
    require(difference <= bar, f"{what}: the losses differ by {difference:.2g} of their size, more than {bar:.2g}.")
    fallen = 1 - found[-1] / found[0]
    require(fallen > 5 * bar, f"{what}: the losses fall by {fallen:.2g} of their size only, so nothing was compared.")
