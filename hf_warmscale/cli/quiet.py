"""What other libraries say on their own, and nobody at a shell wants to read."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SLOW = 2.0
"""Seconds after which a bar of transformers is worth showing."""


def quieten() -> None:
    """Leave out what torch, peft and DeepSpeed (imported whenever a model is saved) say to nobody at a shell."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft 0.21.2 reads it
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")


def show_slow_bars_only() -> None:
    """Show transformers' bars of loading and saving when they take long; many checkpoints make many short ones."""
    from transformers.utils import logging as transformers_logging

    def late(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": SLOW, **kwargs})

    transformers_logging.set_tqdm_hook(late)


@contextmanager
def no_bars_of_datasets() -> Iterator[None]:
    """Read small data without the bars of datasets, which stay on the screen when they are done."""
    from datasets import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
