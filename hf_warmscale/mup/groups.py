"""Parameter groups that give every parameter its muP learning rate, weight decay and eps."""

import math
from typing import Any

from torch import nn
from transformers import GraniteConfig, PreTrainedConfig

from hf_warmscale.mup.granite_form import GraniteForm
from hf_warmscale.mup.placement import Placement, find_placement
from hf_warmscale.mup.rules import Setting
from hf_warmscale.mup.weight_decay import WeightDecayRule, group_weight_decay


def mup_param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    weight_decay_rule: WeightDecayRule = "paper",
    timescale: float | None = None,
) -> list[dict[str, Any]]:
    """Build the optimizer's parameter groups: one for each distinct setting, the one nearest to the base rate first.

    Parameters are found by name, never by shape, so the groups are the same under DDP, ZeRO-3 (which hides shapes),
    `fully_shard`, `torch.compile` and peft. Every trainable parameter is in exactly one group. Trainer logs the rate
    of the first group.

    Args:
        model (`nn.Module`): a [`MupForCausalLM`], or what wraps one.
        lr (`float`): the learning rate tuned at the base shape.
        weight_decay (`float`): the decoupled weight decay at the base shape; gains and biases are not decayed.
        eps (`float`): Adam's eps at the base shape.
        weight_decay_rule (`str`): see [`group_weight_decay`].
        timescale (`float`, *optional*): in steps, for the rule `ema_timescale`.

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay`, `eps` and `name` (the roles in the group).

    Raises:
        ValueError: if the model has no muP entry, or a trainable parameter is unknown to it.

    Example:

    ```python
    >>> optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1))
    ```
    """
    form = GraniteForm.from_config(_granite_config(model))
    placements, parametrization = form.placements(), form.parametrization
    members: dict[Setting, list[tuple[Placement, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            placement = find_placement(placements, name)
            key = placement.setting(parametrization)
            members.setdefault(Setting(1.0, key.lr, key.weight_decay, key.eps), []).append((placement, parameter))
    ordered = sorted(members, key=lambda setting: abs(math.log(setting.lr)))
    return [
        {
            "params": [parameter for _, parameter in members[setting]],
            "lr": lr * setting.lr,
            "weight_decay": group_weight_decay(
                weight_decay_rule,
                factor=setting.weight_decay,
                lr=lr,
                group_lr=lr * setting.lr,
                weight_decay=weight_decay,
                timescale=timescale,
            ),
            "eps": eps * setting.eps,
            "name": "+".join(sorted({placement.role for placement, _ in members[setting]})),
        }
        for setting in ordered
    ]


def _granite_config(model: nn.Module) -> GraniteConfig:
    while not isinstance(config := getattr(model, "config", None), PreTrainedConfig):
        inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise ValueError(f"The model {type(model).__name__} has no config; pass a transformers model.")
        model = inner
    if not isinstance(config, GraniteConfig):
        raise ValueError(
            f"The model is of the family {config.model_type}, not of Granite's form; pass a MupForCausalLM."
        )
    return config
