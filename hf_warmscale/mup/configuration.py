"""`MupConfig`: a Granite config that knows the base shape its hyperparameters were tuned at."""

import copy
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GraniteConfig

from hf_warmscale.mup.granite_form import BASE_WIDTHS, GraniteForm, complete_entry, head_dim, mup_entry

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@strict
class MupConfig(GraniteConfig):
    """Configure a muP or CompleteP model; what it saves is a stock Granite config with one extra entry, `mup`.

    Granite's four forward multipliers follow from the entry and the sizes; everything is stored as plain numbers. To
    change a size, use `resized`: assigning one afterwards would leave stale multipliers.

    Args:
        mup (`dict`): the base shape and the constants tuned at it: `base_hidden_size` (required),
            `base_num_hidden_layers` (default: this model's own), `base_intermediate_size`, `base_num_attention_heads`
            and `base_num_key_value_heads` (default: in proportion to the hidden sizes), `rule` (`"completep"`, `"mup"`
            or `"standard"`), `depth_alpha`, `embedding_alpha`, `readout_alpha`, `zero_init_readout`,
            `zero_init_query`; see [`Parametrization`].
        head_dim (`int`, *optional*): the size of an attention head, the same at every width; by default
            `hidden_size / num_attention_heads`.
        kwargs: every field of `GraniteConfig`.

    Raises:
        ValueError: on an unknown or wrong entry, a base that is wider than the model, or a forward multiplier given by
            hand that contradicts the entry.

    Example:

    ```python
    >>> config = MupConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
    ...                    mup={"base_hidden_size": 64, "base_num_hidden_layers": 4})
    >>> config.logits_scaling, config.residual_multiplier
    (4.0, 0.5)
    ```
    """

    has_no_defaults_at_init = True

    head_dim: int | None = None
    mup: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.head_dim is None:
            self._refuse_another_head_dim()
        self.head_dim = head_dim(self)
        self._refuse_heads()
        self.mup = complete_entry(self, mup_entry(self))
        for name, value in GraniteForm.from_config(self).forward_multipliers().items():
            given = getattr(self, name)
            # 1.0 is Granite's default, so it cannot be told from a field that was left out; every other number was
            # given.
            if given not in (1.0, value):
                raise ValueError(
                    f"The config's {name} is {given}, but its mup entry makes it {value}; leave {name} out, or change "
                    "the entry (embedding_alpha, readout_alpha, the base sizes)."
                )
            setattr(self, name, value)

    def validate_architecture(self) -> None:
        """Allow a hidden size that is not a multiple of the number of heads: the size of a head is a field."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MupConfig":
        """Build the config from a stored one; sizes among the arguments are applied with `resized`.

        `from_pretrained(folder, num_hidden_layers=2)` ends up here; without this it would keep the multipliers of the
        stored depth.
        """
        sizes = {name: kwargs.pop(name) for name in SIZES if name in kwargs}
        made: Any = super().from_dict(config_dict, **kwargs)
        if isinstance(made, tuple):  # with the unused arguments, if they were asked for
            made, *unused = made
            return (made.resized(**sizes) if sizes else made, *unused)  # type: ignore[return-value]
        return made.resized(**sizes) if sizes else made  # type: ignore[no-any-return]

    def resized(self, **sizes: int) -> "MupConfig":
        """Return this config with other sizes, the same base shape, and the multipliers that follow.

        Args:
            sizes (`int`): config fields, such as `hidden_size` or `num_hidden_layers`. The size of a head stays.
        """
        return self._rebuilt(sizes)

    def with_mup(self, **entries: Any) -> "MupConfig":
        """Return this config with other entries in `mup`, such as `rule`, and the multipliers that follow."""
        entry = dict(self.mup or {})
        if "base_hidden_size" in entries:  # the other base widths follow it, as when the config was made
            entry = {name: value for name, value in entry.items() if name not in BASE_WIDTHS}
        return self._rebuilt({"mup": {**entry, **entries}})

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values; it names the stock class, which loads the checkpoint."""
        content: dict[str, Any] = super().to_dict()
        if content.get("architectures"):
            content["architectures"] = ["GraniteForCausalLM"]
        return content

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what is saved: the differences from the defaults, and always what a stock Granite needs."""
        content: dict[str, Any] = super().to_diff_dict()
        # A multiplier of 1.0 is Granite's default and would be left out; llama.cpp requires `logits_scaling`.
        kept = ["head_dim", "mup", *GraniteForm.from_config(self).forward_multipliers()]
        return {**content, **{name: getattr(self, name) for name in kept}}

    def _rebuilt(self, changes: Mapping[str, Any]) -> "MupConfig":
        content = copy.deepcopy(self.to_dict())
        # Else `__post_init__` would find the old multipliers and take them for given by hand.
        for name in GraniteForm.from_config(self).forward_multipliers():
            del content[name]
        return type(self)(**{**content, **changes})

    def _refuse_another_head_dim(self) -> None:
        """Refuse a head size that is derived from the widths and differs from the base's."""
        entry = mup_entry(self)
        heads, width = entry.get("base_num_attention_heads"), entry.get("base_hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads and width / heads != head_dim(self):
            raise ValueError(
                f"The base has heads of {width / heads:g}, the model of {head_dim(self)}; set head_dim, and let the "
                "number of heads grow instead."
            )

    def _refuse_heads(self) -> None:
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"The number of attention heads {self.num_attention_heads} is not a multiple of the number of "
                f"key-value heads {self.num_key_value_heads}; change one of them."
            )
        if (self.head_dim or 0) % 2:
            raise ValueError(f"The head_dim {self.head_dim} is odd; rotary embeddings need an even one.")
