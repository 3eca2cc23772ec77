"""Filter the messages and progress bars of other libraries that are noise on a terminal."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

SLOW = 2.0
"""Seconds after which a progress bar of transformers or datasets is shown."""


def quieten() -> None:
    """Filter warnings of torch, peft and DeepSpeed, which is imported whenever a model is saved."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft 0.21.2 reads it
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")


def show_slow_bars_only() -> None:
    """Show transformers' progress bars only after some seconds; many checkpoints make many short ones."""
    from transformers.utils import logging as transformers_logging

    def late(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": SLOW, **kwargs})

    transformers_logging.set_tqdm_hook(late)


@contextmanager
def no_bars_of_datasets() -> Iterator[None]:
    """Read small data without the progress bars of datasets, which stay on the screen."""
    from datasets import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def late_bars_of_datasets() -> Iterator[None]:
    """Read a corpus with progress bars that a quick refusal is not preceded by: after some seconds, on a terminal."""
    os.environ.setdefault("TQDM_DELAY", str(SLOW))  # tqdm reads it when it is imported
    with nullcontext() if sys.stderr.isatty() else no_bars_of_datasets():
        yield
