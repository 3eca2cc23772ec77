"""The training arguments that stages add to those of transformers, and how a stage treats the others."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_warmscale.compat.transformers import dict_arguments
from hf_warmscale.mup import FORWARD_MULTIPLIERS, is_mup
from hf_warmscale.refusals import refuse_unknown

MISMATCH = ("error", "override", "use_checkpoint")

STAGE_DECIDES = ("max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
"""Arguments that the stage and its schedule replace."""

STAGE_CANNOT = {
    "train_sampling_strategy": "the mixture decides the order of the rows",
    "ignore_data_skip": "a stage always continues at its place in the data",
    "dataloader_in_order": "the rows of a step would depend on which worker is faster",
}
"""Arguments that would make the record of a stage untrue, and why."""

AT_LEAST = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 1, "dataloader_num_workers": 0}
"""The least value of arguments that transformers takes as they are, to fail at the first step."""

HYPERPARAMETERS = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args")
"""Arguments that shape the trajectory besides the stage itself and can be set until training starts."""

BALANCE = "router_aux_loss_coef"
"""Recorded where it is given; see `balance`."""

MADE_WITH = ("label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16")
"""Arguments that shape the trajectory and are fixed when the trainer is made."""


@dataclass
class ContinualArguments:
    """What `ContinualMixin` reads from the arguments; mix it into the arguments of any trainer.

    ```python
    @dataclass
    class ContinualSFTConfig(ContinualArguments, SFTConfig): ...
    ```
    """

    on_mismatch: str = field(
        default="error",
        metadata={
            "help": "What to do when a resumed checkpoint and the arguments differ: 'error' shows the differences, "
            "'override' takes the arguments from here on, another total batch and mixture among them, "
            "'use_checkpoint' takes the checkpoint.",
            "choices": list(MISMATCH),
        },
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the load-balancing loss of a mixture of experts while it trains; by default its config "
            "decides."
        },
    )
    eval_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Weights of the evaluation domains in eval_weighted_loss, as JSON; they must sum to 1."},
    )

    eval_tokens_per_byte: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Tokens per byte of text in each evaluation domain, as JSON; adds eval_<domain>_bits_per_byte, "
            "which compares across tokenizers. From a YAML file it is filled in from the packed data."
        },
    )

    def __post_init__(self) -> None:
        refuse_unknown("on_mismatch", self.on_mismatch, MISMATCH)
        refuse_too_small(self)
        parent_post_init = getattr(super(), "__post_init__", None)
        if parent_post_init is not None:
            parent_post_init()
        if isinstance(self.eval_weights, dict) and abs(sum(self.eval_weights.values()) - 1) > 1e-6:
            raise ValueError(f"eval_weights are {self.eval_weights}; make them sum to 1.")


@dataclass
class ContinualTrainingArguments(ContinualArguments, TrainingArguments):
    """`TrainingArguments` for a `ContinualTrainer`: every argument of transformers, and those of `ContinualArguments`.

    The stage decides the length and the schedule, so leave `max_steps`, `num_train_epochs`, `lr_scheduler_type` and
    `warmup_steps` at their defaults. `learning_rate` is the peak rate where the schedule names none.

    Example:

    ```python
    >>> args = ContinualTrainingArguments("runs/german", learning_rate=3e-4, on_mismatch="override")
    ```
    """

    _VALID_DICT_FIELDS = dict_arguments("eval_weights", "eval_tokens_per_byte")


def refuse_too_small(args: Any) -> None:
    """Refuse numbers of rows, steps and workers with which no step can be made.

    Args:
        args: with the fields of `TrainingArguments`, or without some of them.
    """
    for name, least in AT_LEAST.items():
        value = getattr(args, name, least)
        if isinstance(value, int) and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")


def stage_arguments(stage: str, args: TrainingArguments | None) -> TrainingArguments:
    """Return a copy of the arguments for a stage to fill in.

    Args:
        stage (`str`): its name.
        args (`TrainingArguments`, *optional*): of the trainer.

    Raises:
        ValueError: naming an argument that the stage would ignore.
    """
    args = TrainingArguments() if args is None else copy.copy(args)
    refuse_too_small(args)
    for name in STAGE_DECIDES:
        value = getattr(args, name)
        # None and -1 mean "not set" in transformers, also where they are not the default.
        if value != _default(args, name) and value not in (None, -1):
            raise ValueError(f"{name} is {value}, but the stage {stage!r} decides it; leave {name} out.")
    for name, reason in STAGE_CANNOT.items():
        value = getattr(args, name)
        if value != _default(args, name):
            raise ValueError(f"{name} is {value}, but in the stage {stage!r} {reason}; leave {name} out.")
    if "layerwise" in str(_plain(args.optim)):
        raise ValueError(f"optim is {_plain(args.optim)}, which takes no schedule; use its kind without layerwise.")
    args.train_sampling_strategy = "sequential"  # the order of the samples of a stage is the mixture's
    return args


def trajectory_arguments(args: TrainingArguments, model: nn.Module | None = None) -> dict[str, Any]:
    """Return what shapes the trajectory besides the stage: hyperparameters, and every float of the model's config.

    The floats are dropout rates, eps, router coefficients and multipliers, by whatever name a family has for them;
    those of adapters are there too.

    Args:
        args (`TrainingArguments`): of the trainer.
        model (`nn.Module`, *optional*): in whatever wraps it.
    """
    recorded = {name: _plain(getattr(args, name)) for name in (*HYPERPARAMETERS, *MADE_WITH)}
    if getattr(args, BALANCE, None) is not None:
        recorded[BALANCE] = getattr(args, BALANCE)
    config = getattr(model, "config", None)
    if config is not None:
        content = config if isinstance(config, Mapping) else config.to_dict()
        recorded["model"] = _floats({key: value for key, value in content.items() if key not in _follows(config)})
    for name, adapter in getattr(model, "peft_config", {}).items():
        recorded[f"adapter_{name}"] = _floats(adapter.to_dict())
    return recorded


def _follows(config: Any) -> set[str]:
    """Return the entries of a config that tell nothing of their own about the trajectory.

    A model that was grown in the middle of its stage continues that stage: the entry `growth` says how it came to be,
    and the forward multipliers of a muP model follow from its `mup` entry, which is recorded, and its sizes.
    """
    return {"growth", *(FORWARD_MULTIPLIERS if is_mup(config) else ())}


def restore_arguments(args: TrainingArguments, recorded: Mapping[str, Any]) -> None:
    """Set the arguments that can still be set to what a record holds."""
    for name in HYPERPARAMETERS:
        if name in recorded:
            now, then = getattr(args, name), recorded[name]
            # `stage.json` holds the plain value of an enum, such as `optim`.
            setattr(args, name, type(now)(then) if isinstance(now, Enum) else then)


def _default(args: TrainingArguments, name: str) -> Any:
    return type(args).__dataclass_fields__[name].default


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _floats(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the floats of a nested mapping; where it has none, an entry is left out."""
    found = {key: _floats(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    return {
        str(key): value
        for key, value in found.items()
        if isinstance(value, float) or (value and isinstance(value, dict))
    }
