"""The optimizer of a stage: muP groups where the model carries muP metadata, and settings that survive a load."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from hf_warmscale.mup import is_mup, mup_param_groups

MUP_OPTIMIZERS = ("adamw", "adam")
"""Prefixes of the optimizers whose rates muP knows: those that divide the gradient by its own size."""


def mup_groups(
    model: nn.Module, args: TrainingArguments, chosen: tuple[Any, Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """Return the muP groups of a model, or `None` where muP does not apply.

    That is a model without a `mup` entry in its config, or an optimizer factory, which makes its own groups. The
    rate, weight decay and eps of the arguments are those tuned at the base shape; the reference group comes first.

    Args:
        model (`nn.Module`): the model to train.
        args (`TrainingArguments`): of the trainer.
        chosen: the optimizer class, or factory, and its keyword arguments.

    Raises:
        ValueError: if the optimizer is not a kind of Adam: its rates would be wrong by the width.
    """
    factory = not (isinstance(chosen[0], type) and issubclass(chosen[0], Optimizer))
    if factory or not is_mup(getattr(model, "config", None)):
        return None
    name = chosen[0].__name__
    # Paged, 8-bit and fused kinds are classes of other libraries with the same first letters.
    if not name.lower().removeprefix("paged").startswith(MUP_OPTIMIZERS) or "params" in chosen[1]:
        raise ValueError(
            f"The model carries muP metadata and its learning rates are those of AdamW, but the optimizer is {name}; "
            "use optim='adamw_torch', or export the model first."
        )
    settings = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "eps": args.adam_epsilon} | {
        key: value for key, value in chosen[1].items() if key in ("lr", "weight_decay", "eps")
    }
    return mup_param_groups(model, **settings)


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of every parameter group, with its peak rate where a schedule has already changed it."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    # A torch scheduler keeps the peak in `initial_lr`, and its own current rate in `lr`.
    return [{**group, "lr": group.get("initial_lr", group["lr"])} for group in settings]
