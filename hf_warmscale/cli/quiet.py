"""What other libraries say on their own, and nobody at a shell wants to read."""

import logging
from collections.abc import Callable
from typing import Any

SLOW = 2.0
"""Seconds after which a bar of transformers is worth showing."""


def quieten_deepspeed() -> None:
    """Keep DeepSpeed, imported whenever a model is saved, from saying on standard output that there is no GPU."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def show_slow_bars_only() -> None:
    """Show transformers' bars of loading and saving when they take long; many checkpoints make many short ones."""
    from transformers.utils import logging as transformers_logging

    def late(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": SLOW, **kwargs})

    transformers_logging.set_tqdm_hook(late)
