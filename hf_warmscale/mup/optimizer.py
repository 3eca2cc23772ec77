"""muP in an unmodified Trainer: an optimizer factory for `optimizer_cls_and_kwargs`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_warmscale.mup.factors import TrainingFactors
from hf_warmscale.mup.groups import mup_param_groups
from hf_warmscale.mup.rules import Parametrization
from hf_warmscale.mup.weight_decay import WeightDecayRule
from hf_warmscale.refusals import refuse_deepspeed_blocks

if TYPE_CHECKING:
    from transformers import TrainingArguments


class MupOptimizerFactory:
    """The factory that Trainer instantiates and calls with the model; it returns an optimizer on muP's groups."""

    def __call__(
        self,
        model: nn.Module,
        *,
        optimizer_cls: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
        group_kwargs: dict[str, Any],
    ) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return optimizer_cls(mup_param_groups(model, **group_kwargs), **optimizer_kwargs)


def mup_optimizer(
    args: "TrainingArguments",
    *,
    base_config: PreTrainedConfig | None = None,
    parametrization: Parametrization | None = None,
    factors: TrainingFactors | None = None,
    weight_decay_rule: WeightDecayRule = "paper",
    timescale: float | None = None,
) -> tuple[type[MupOptimizerFactory], dict[str, Any]]:
    """Return the `optimizer_cls_and_kwargs` with which an unmodified Trainer, or trl's, trains in muP.

    The rate, weight decay, eps and betas of `args` are those tuned at the base shape. The schedule multiplies every
    group's rate; Trainer logs that of the first group, the base rate.

    Set `max_grad_norm=0` where two forms of one model, or a model and its base, are to train alike: clipping by the
    global gradient norm (Trainer's default is 1) depends on the width and on where the multipliers stand. Under FSDP2
    the groups are tested with a bare `fully_shard`; accelerate's own FSDP2 path does not run on CPU.

    Args:
        args (`TrainingArguments`): the same that the Trainer gets; `optim` must be a kind of AdamW.
        base_config, parametrization, factors, weight_decay_rule, timescale: see [`mup_param_groups`].

    Returns:
        `tuple`: for `Trainer(optimizer_cls_and_kwargs=...)`.

    Raises:
        ValueError: if `optim` is not a kind of AdamW, or a DeepSpeed config brings its own optimizer.

    Example:

    ```python
    >>> trainer = Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=mup_optimizer(args))
    ```
    """
    from transformers import Trainer  # seconds to import, and only this function needs it
    from transformers.training_args import OptimizerNames

    refuse_deepspeed_optimizer(args)
    name = OptimizerNames(args.optim).value
    if not name.startswith("adamw"):
        raise ValueError(f"muP scales the rates of AdamW, and the optimizer is {name}; set optim='adamw_torch'.")
    optimizer_cls, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    groups = {
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "eps": args.adam_epsilon,
        "base_config": base_config,
        "parametrization": parametrization,
        "factors": factors,
        "weight_decay_rule": weight_decay_rule,
        "timescale": timescale,
    }
    return MupOptimizerFactory, {
        "optimizer_cls": optimizer_cls,
        "optimizer_kwargs": optimizer_kwargs,
        "group_kwargs": groups,
    }


def refuse_deepspeed_optimizer(args: "TrainingArguments") -> None:
    """Refuse a DeepSpeed config that brings its own optimizer: it would put all parameters into one group.

    Raises:
        ValueError: if it does.
    """
    plugin = args.deepspeed_plugin  # also set by accelerate's own config file, which leaves `args.deepspeed` empty
    if plugin is not None:
        refuse_deepspeed_blocks(plugin.deepspeed_config, "optimizer")
