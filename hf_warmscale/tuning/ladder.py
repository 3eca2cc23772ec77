"""The same model at several widths or depths."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from hf_warmscale.mup import FORWARD_MULTIPLIERS, MupConfig

Axis = Literal["width", "depth"]

WIDTHS = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


def at_size(config: MupConfig, axis: Axis, size: int) -> MupConfig:
    """Return a config of another width, all its widths in proportion, or of another depth; the base shape stays.

    Args:
        config (`MupConfig`): of any size.
        axis (`"width"` or `"depth"`): what changes.
        size (`int`): the hidden size, or the number of layers.

    Raises:
        ValueError: if a width in proportion is not a whole number.

    Example:

    ```python
    >>> wide = at_size(config, "width", 64)
    >>> wide.hidden_size, wide.intermediate_size, wide.mup["base_hidden_size"]
    (64, 128, 16)
    ```
    """
    if axis == "depth":
        # `resized`, not an assignment: the forward multipliers follow from the sizes.
        return config.resized(num_hidden_layers=size)
    widths = {"hidden_size": size}
    for name in WIDTHS:
        widths[name], remainder = divmod(getattr(config, name) * size, config.hidden_size)
        if remainder:
            raise ValueError(
                f"The hidden size {size} would need {name} = {getattr(config, name) * size / config.hidden_size:g}; "
                f"take a width in whole proportion to {config.hidden_size}."
            )
    return config.resized(**widths)


def refuse_one_size(sizes: Sequence[int]) -> None:
    """Raise a ValueError where there is nothing to compare."""
    if len(set(sizes)) < 2:
        raise ValueError(f"A comparison needs at least two sizes, and there are {list(sizes)}; name more.")


def ladder(config: MupConfig, axis: Axis, sizes: Sequence[int]) -> dict[int, MupConfig]:
    """Return the config of every size.

    Args:
        config (`MupConfig`): of any size.
        axis (`"width"` or `"depth"`): what changes.
        sizes (`Sequence[int]`): hidden sizes, or numbers of layers.

    Raises:
        ValueError: as [`at_size`].

    Example:

    ```python
    >>> {size: rung.num_hidden_layers for size, rung in ladder(config, "depth", [2, 4]).items()}
    {2: 2, 4: 4}
    ```
    """
    return {size: at_size(config, axis, size) for size in sizes}


def describe_study(task: Mapping[str, Any], config: MupConfig, axis: Axis) -> dict[str, Any]:
    """Return what the runs of a study depend on beside their size, rate and seed, as plain values.

    Of what changes along the axis only the proportions count, so that the sizes of a study may be extended.
    """
    follows = {"transformers_version", *FORWARD_MULTIPLIERS}
    shape = {name: value for name, value in config.to_dict().items() if name not in follows}
    if axis == "depth":
        del shape["num_hidden_layers"]
    else:
        shape |= {name: str(Fraction(getattr(config, name), config.hidden_size)) for name in WIDTHS}
        del shape["hidden_size"]
    return {"task": dict(task), "axis": axis, "model": shape}
