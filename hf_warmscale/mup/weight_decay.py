"""Four rules for the decoupled weight decay of a parameter group, as pure functions of its learning rate.

The decay per step is `lr * weight_decay`. `paper`, `constant_lr_wd` and, at a fixed rate, `ema_timescale` keep that
product the same at every width; `independent` makes it the same for every group and every base rate.
"""

from typing import Literal, get_args

WeightDecayRule = Literal["paper", "independent", "constant_lr_wd", "ema_timescale"]


def group_weight_decay(
    rule: WeightDecayRule,
    *,
    factor: float,
    lr: float,
    group_lr: float,
    weight_decay: float,
    timescale: float | None = None,
) -> float:
    """Return the weight decay of a parameter group.

    - `"paper"`: `weight_decay * factor`, the table's column (arXiv:2505.01618, Table 1).
    - `"independent"`: `weight_decay / group_lr`, so that each step decays by `weight_decay` whatever the rate
      (arXiv:2309.14322).
    - `"constant_lr_wd"`: `weight_decay * lr / group_lr`, so that each step decays every group by `lr * weight_decay`.
    - `"ema_timescale"`: `1 / (group_lr * timescale)`: the weights average the updates of the last `timescale` steps
      (arXiv:2405.13698).

    Args:
        rule (`str`): one of the four.
        factor (`float`): the table's factor for the group; 0 marks what is not decayed under any rule.
        lr (`float`): the base learning rate.
        group_lr (`float`): the learning rate of the group.
        weight_decay (`float`): the base weight decay; not used by `ema_timescale`.
        timescale (`float`, *optional*): in steps, for `ema_timescale`.

    Raises:
        ValueError: on an unknown rule, a missing or superfluous timescale, or a rate of 0 under a rule that divides by
            it.

    Example:

    ```python
    >>> group_weight_decay("paper", factor=4.0, lr=0.01, group_lr=0.0025, weight_decay=0.1)
    0.4
    >>> group_weight_decay("ema_timescale", factor=4.0, lr=0.01, group_lr=0.0025, weight_decay=0.1, timescale=4000)
    0.1
    ```
    """
    if rule not in get_args(WeightDecayRule):
        raise ValueError(
            f"The weight decay rule {rule!r} is unknown; use one of {', '.join(get_args(WeightDecayRule))}."
        )
    if (timescale is not None) != (rule == "ema_timescale"):
        raise ValueError(
            f"The weight decay rule is {rule!r} and the timescale {timescale!r}; ema_timescale needs a timescale in "
            "steps, and no other rule takes one."
        )
    # First: under the other rules, gains and biases would be decayed after all.
    if factor == 0:
        return 0.0
    if rule == "paper":
        return weight_decay * factor
    if group_lr <= 0:
        raise ValueError(
            f"The weight decay rule {rule!r} divides by the learning rate, which is {group_lr}; use paper."
        )
    if rule == "independent":
        return weight_decay / group_lr
    if rule == "constant_lr_wd":
        return weight_decay * lr / group_lr
    if timescale is None or timescale <= 0:
        raise ValueError(f"The timescale of the weight decay is {timescale}; give a positive number of steps.")
    return 1 / (group_lr * timescale)
