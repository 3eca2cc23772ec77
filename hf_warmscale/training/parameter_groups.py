"""Parameter groups for models that carry muP metadata."""

from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_warmscale.mup import is_mup, mup_param_groups


def mup_groups(model: nn.Module, args: TrainingArguments) -> list[dict[str, Any]] | None:
    """Return the muP groups of a model, or `None` for a model without a `mup` entry in its config.

    Rates, weight decay and eps of the arguments are those tuned at the base shape; the reference group comes first.
    """
    if not is_mup(getattr(model, "config", None)):
        return None
    return mup_param_groups(model, lr=args.learning_rate, weight_decay=args.weight_decay, eps=args.adam_epsilon)
