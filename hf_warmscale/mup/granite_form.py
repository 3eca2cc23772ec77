"""muP on Granite's own fields: from the plain numbers of a config to the factors of every parameter.

Granite is Llama with four forward multipliers in its config, and muP needs no more than these, so a muP model *is* a
Granite model: `embedding_multiplier = embedding_alpha`, `residual_multiplier = m_L^-alpha`, `logits_scaling =
m_N / readout_alpha` (it divides) and `attention_multiplier = head_dim^-1/2`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeGuard

from transformers import GraniteConfig

from hf_warmscale.architecture import Role
from hf_warmscale.mup.parameter_scaling import ParameterScaling
from hf_warmscale.mup.rules import Parametrization, Ratios

Reads = Literal["hidden_size", "num_attention_heads", "intermediate_size"]

MATRICES: Mapping[str, tuple[Reads, str]] = {
    "q_proj": ("hidden_size", "num_attention_heads"),
    "k_proj": ("hidden_size", "num_key_value_heads"),
    "v_proj": ("hidden_size", "num_key_value_heads"),
    "o_proj": ("num_attention_heads", "hidden_size"),
    "gate_proj": ("hidden_size", "intermediate_size"),
    "up_proj": ("hidden_size", "intermediate_size"),
    "down_proj": ("intermediate_size", "hidden_size"),
}
"""The hidden matrices, by module: the size that each sums over, and the size along which it writes."""

BLOCK_MODULES: Mapping[str, str | None] = {
    "self_attn.q_proj": "attention_bias",
    "self_attn.k_proj": "attention_bias",
    "self_attn.v_proj": "attention_bias",
    "self_attn.o_proj": "attention_bias",
    "mlp.gate_proj": "mlp_bias",
    "mlp.up_proj": "mlp_bias",
    "mlp.down_proj": "mlp_bias",
    "input_layernorm": None,
    "post_attention_layernorm": None,
}
"""The modules of a block, in order, with the config field that gives them a bias."""

BASE_WIDTHS = ("base_intermediate_size", "base_num_attention_heads", "base_num_key_value_heads")


@dataclass(frozen=True)
class GraniteForm:
    """A Granite-form muP model, relative to its base.

    Args:
        parametrization (`Parametrization`): the rules and the tuned constants.
        widths (`Mapping[str, float]`): the ratio to the base of each size that is a width, by config field.
        depth (`float`): m_L.
        head_dim (`int`): the same at every width.
        num_hidden_layers (`int`): of the model itself.
        tied (`bool`): the readout is the embedding.
        biased (`frozenset[str]`): the config fields, of `attention_bias` and `mlp_bias`, that are true.
    """

    parametrization: Parametrization
    widths: Mapping[str, float]
    depth: float
    head_dim: int
    num_hidden_layers: int
    tied: bool
    biased: frozenset[str]

    @classmethod
    def from_config(cls, config: GraniteConfig) -> "GraniteForm":
        """Read the `mup` entry of a config.

        Raises:
            ValueError: if there is none, or its entries are unknown, of the wrong type or do not fit the model.
        """
        return cls._from_entry(config, mup_entry(config))

    @classmethod
    def standard(cls, config: GraniteConfig) -> "GraniteForm":
        """Return the form of a Granite that is its own base, in the standard parametrization."""
        shape = {"base_hidden_size": config.hidden_size, "base_num_hidden_layers": config.num_hidden_layers}
        return cls._from_entry(config, {**shape, "rule": "standard"})

    @classmethod
    def _from_entry(cls, config: GraniteConfig, entry: Mapping[str, Any]) -> "GraniteForm":
        names = {field.name for field in fields(Parametrization)}
        form = cls(
            parametrization=Parametrization(**{name: value for name, value in entry.items() if name in names}),
            widths=_widths(config, entry),
            depth=config.num_hidden_layers / _size(entry, "base_num_hidden_layers"),
            head_dim=head_dim(config),
            num_hidden_layers=config.num_hidden_layers,
            tied=config.tie_word_embeddings,
            biased=frozenset(name for name in ("attention_bias", "mlp_bias") if getattr(config, name)),
        )
        if form.tied and form.parametrization.zero_init_readout:
            raise ValueError("muP's zero_init_readout needs an untied readout; set tie_word_embeddings=False.")
        return form

    def forward_multipliers(self) -> dict[str, float]:
        """Return the four config fields of Granite that hold the forward pass of this form."""
        # No depth: embedding and readout are outside the blocks.
        ratios = Ratios(width=self.widths["hidden_size"])
        return {
            "embedding_multiplier": self.parametrization.multiplier("embedding", ratios),
            "attention_multiplier": float(self.head_dim**-0.5),
            "residual_multiplier": self.parametrization.residual_multiplier(self.depth),
            "logits_scaling": 1 / self.parametrization.multiplier("readout", ratios),
        }

    def linear_init(self, module: str) -> float:
        """Return the factor on the init std of a linear layer, by the last part of the module's path."""
        if self._zero_init(module):
            return 0.0
        return self.parametrization.factors("readout" if module == "lm_head" else "hidden", self._ratios(module)).init

    def scalings(self) -> dict[str, ParameterScaling]:
        """Return the scaling of every parameter, in the model's own order; a tied readout is not one."""
        scalings = {"model.embed_tokens.weight": ParameterScaling("embedding", self._ratios("embed_tokens"))}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            for path, biased in BLOCK_MODULES.items():
                module = path.split(".")[-1]
                role: Role = "hidden" if module in MATRICES else "norm"
                ratios = self._ratios(module, self.depth)
                zero = self._zero_init(module)
                scalings[f"{prefix}.{path}.weight"] = ParameterScaling(role, ratios, in_block=True, zero_init=zero)
                if biased in self.biased:
                    scalings[f"{prefix}.{path}.bias"] = ParameterScaling("bias", ratios, in_block=True)
        # The final norm keeps the default depth of 1: it is no block's.
        scalings["model.norm.weight"] = ParameterScaling("final_norm", self._ratios("norm"))
        if not self.tied:
            zero = self._zero_init("lm_head")
            scalings["lm_head.weight"] = ParameterScaling("readout", self._ratios("lm_head"), zero_init=zero)
        return scalings

    def _zero_init(self, module: str) -> bool:
        constants = self.parametrization
        return {"lm_head": constants.zero_init_readout, "q_proj": constants.zero_init_query}.get(module, False)

    def _ratios(self, module: str, depth: float = 1.0) -> Ratios:
        # The fallback is for gains, embedding and readout, whose rules read the width and not fan-in or fan-out.
        reads, writes = MATRICES.get(module, ("hidden_size", "hidden_size"))
        return Ratios(
            width=self.widths["hidden_size"], depth=depth, fan_in=self.widths[reads], fan_out=self.widths[writes]
        )


FORWARD_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
"""The fields of a Granite config that a muP model computes from its `mup` entry and its sizes."""


def is_mup(config: object) -> TypeGuard[GraniteConfig]:
    """Tell whether a config carries the base shape of a muP model: it is a Granite's and has a `mup` entry.

    This is the package's only test for it. Neither the class nor the weights decide: the entry survives in the stock
    Granite config that `MupForCausalLM.save_pretrained` writes, and a `mup` key of another family is not ours.

    Example:

    ```python
    >>> from transformers import GraniteConfig
    >>> is_mup(config), is_mup(GraniteConfig())
    (True, False)
    ```
    """
    return isinstance(config, GraniteConfig) and getattr(config, "mup", None) is not None


def refuse_stale_multipliers(config: GraniteConfig) -> None:
    """Refuse a forward multiplier that does not follow from the `mup` entry and the sizes.

    Raises:
        ValueError: if a size, or a multiplier, was changed after the config was made.
    """
    for name, value in GraniteForm.from_config(config).forward_multipliers().items():
        # Exact: `forward_multipliers` computes the same floats from the same numbers, and JSON keeps every bit of
        # them.
        if getattr(config, name) != value:
            raise ValueError(
                f"The config's {name} is {getattr(config, name)}, and its sizes and mup entry make it {value}; change "
                "sizes with config.resized(...), and the entry with config.with_mup(...)."
            )


def head_dim(config: GraniteConfig) -> int:
    """Return the size of an attention head: the config's own, or what follows from the hidden size."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def mup_entry(config: GraniteConfig) -> dict[str, Any]:
    """Return the `mup` entry of a config; it survives in a stock Granite config as an extra key.

    Raises:
        ValueError: if there is none, or it is not a mapping, or it has a key that is not muP's.
    """
    entry = getattr(config, "mup", None)
    if not isinstance(entry, dict):
        raise ValueError(
            f"The config's mup entry is {entry!r}; give mup={{'base_hidden_size': ..., "
            "'base_num_hidden_layers': ...}."
        )
    known = ["base_hidden_size", "base_num_hidden_layers", *BASE_WIDTHS, *asdict(Parametrization())]
    for key in entry:
        if key not in known:
            raise ValueError(f"The key {key!r} of the config's mup entry is unknown; the keys are {', '.join(known)}.")
    return entry


def complete_entry(config: GraniteConfig, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write down what an entry leaves open: the base depth, the base widths in proportion, and the constants.

    A base width that would not be a whole number stays open, and its ratio is that of the hidden sizes.
    """
    base_hidden_size = _size(entry, "base_hidden_size")
    complete: dict[str, Any] = {
        "base_hidden_size": base_hidden_size,
        "base_num_hidden_layers": entry.get("base_num_hidden_layers", config.num_hidden_layers),
    }
    for key in BASE_WIDTHS:
        width, remainder = divmod(getattr(config, key.removeprefix("base_")) * base_hidden_size, config.hidden_size)
        if key in entry:
            complete[key] = _size(entry, key)
        elif not remainder:
            complete[key] = width
    # Defaults are written down, so that a checkpoint keeps its meaning if a later version changes them.
    return {**complete, **asdict(Parametrization()), **entry}


def _widths(config: GraniteConfig, entry: Mapping[str, Any]) -> dict[str, float]:
    widths = {"hidden_size": config.hidden_size / _size(entry, "base_hidden_size")}
    for key in BASE_WIDTHS:
        field = key.removeprefix("base_")
        widths[field] = getattr(config, field) / _size(entry, key) if key in entry else widths["hidden_size"]
    for field, ratio in widths.items():
        if ratio < 1:
            raise ValueError(
                f"The base's {field} is {entry[f'base_{field}']}, wider than the model's {getattr(config, field)}; "
                "muP scales up, so take a base that is at most as wide."
            )
    return widths


def _size(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"The mup entry's {key} is {value!r}; it must be a positive whole number.")
    return value
