"""The load-balancing loss of a mixture of experts, switched on for training alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn

logger = logging.getLogger(__name__)

SWITCH, WEIGHT = "output_router_logits", "router_aux_loss_coef"
"""The field of a config that adds the loss, off in most published models, and the attribute that weighs it."""


def routed_model(model: nn.Module) -> Any | None:
    """Return the model below its adapters, if transformers gives it a balance loss, else `None`."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    has_both = hasattr(plain, WEIGHT) and hasattr(getattr(plain, "config", None), SWITCH)
    return plain if has_both else None


def check_balance(model: nn.Module, coefficient: float | None) -> None:
    """Refuse a balance loss where there are no routers, and say when routers train without one.

    Raises:
        ValueError: if the model has no balance loss to weigh, or the weight is negative.
    """
    routed = routed_model(model)
    if coefficient is None:
        if routed is not None and not getattr(routed.config, SWITCH):
            logger.warning(
                "%s trains without the balance loss of its routers; set %s, for example to 0.01.",
                type(routed).__name__, WEIGHT,
            )  # fmt: skip
        return
    if coefficient < 0:
        raise ValueError(f"{WEIGHT} is {coefficient}; it must be at least 0.")
    if routed is None and coefficient:
        raise ValueError(f"{WEIGHT} is {coefficient}, but {type(model).__name__} has no balance loss; leave it out.")


@contextmanager
def balanced(model: nn.Module, coefficient: float | None) -> Iterator[None]:
    """Add the balance loss to what the model returns (2101.03961, eq. 4-6), with this weight; `None` changes nothing.

    The config is as before afterwards, so that neither an evaluation nor a saved model has the loss in it.
    """
    routed = None if coefficient is None else routed_model(model)
    if routed is None:
        yield
        return
    before = getattr(routed.config, SWITCH), getattr(routed, WEIGHT)
    setattr(routed.config, SWITCH, True)
    setattr(routed, WEIGHT, coefficient)
    try:
        yield
    finally:
        setattr(routed.config, SWITCH, before[0])
        setattr(routed, WEIGHT, before[1])
