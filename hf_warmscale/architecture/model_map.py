"""The meaning of every dimension of every weight of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal

from transformers import PreTrainedConfig

Role = Literal["embedding", "hidden", "readout", "norm", "final_norm", "bias", "router", "buffer"]
"""The purpose of a parameter; learning rates, decay and init depend on it. A `buffer` is saved, not trained."""

Component = Literal["embedding", "attention", "mlp", "norm", "readout", "other"]
"""The part of the network a parameter belongs to; merging shares one coefficient within it."""

NormPosition = Literal["pre", "post", "residual", "final", "embedding", "inner"]


class Axis(StrEnum):
    """A size of the model that can change, named as transformers names it in a config.

    Example:

    ```python
    >>> Axis.HEADS, describe(model.config).sizes[Axis.HEADS]
    (<Axis.HEADS: 'num_attention_heads'>, 4)
    ```
    """

    HIDDEN = "hidden_size"
    INTERMEDIATE = "intermediate_size"
    HEADS = "num_attention_heads"
    KV_HEADS = "num_key_value_heads"
    HEAD_DIM = "head_dim"
    VOCAB = "vocab_size"
    EXPERTS = "num_experts"
    EXPERT_INTERMEDIATE = "moe_intermediate_size"
    SHARED_INTERMEDIATE = "shared_expert_intermediate_size"
    LAYERS = "num_hidden_layers"


@dataclass(frozen=True)
class Block:
    """A contiguous part of a dimension: the product of its factors, the slowest first.

    A factor is an axis or a constant: the rows of `q_proj` are `(HEADS, HEAD_DIM)`, those of GPT-NeoX's fused
    projection `(HEADS, 3, HEAD_DIM)`.

    Args:
        factors (`tuple[Axis | int, ...]`): the slowest first.

    Example:

    ```python
    >>> rows = Block((Axis.HEADS, Axis.HEAD_DIM))
    >>> rows.shape({Axis.HEADS: 4, Axis.HEAD_DIM: 8}), Axis.HIDDEN in rows
    ((4, 8), False)
    ```
    """

    factors: tuple[Axis | int, ...]

    def __contains__(self, axis: Axis) -> bool:
        return axis in self.factors

    def shape(self, sizes: Mapping[Axis, int]) -> tuple[int, ...]:
        """Return the size of each factor."""
        return tuple(sizes[factor] if isinstance(factor, Axis) else factor for factor in self.factors)

    def size(self, sizes: Mapping[Axis, int]) -> int:
        """Return the number of coordinates of the block."""
        return prod(self.shape(sizes))


Dimension = tuple[Block, ...]
"""The blocks that lie one after another along one dimension: Phi-3's `qkv_proj` rows are three."""


@dataclass(frozen=True)
class ParameterMap:
    """One parameter of a model.

    Args:
        name (`str`): as in `named_parameters()` of the plain model.
        role (`Role`): see `Role`.
        component (`Component`): see `Component`.
        dimensions (`tuple[Dimension, ...]`): one entry for each dimension of the tensor.
        fan_in (`int` or `None`): the dimension that the forward pass sums over; `None` for vectors and embeddings.
        fan_out (`int` or `None`): the dimension along which it writes; a vector's and an embedding's own.
        layer (`int` or `None`): the index of the block that holds it.
        module (`str`): the path of the module that owns it.

    Example:

    ```python
    >>> query = describe(model.config).parameters["model.layers.0.self_attn.q_proj.weight"]
    >>> query.role, query.layer, query.reads(Axis.HIDDEN), query.writes(Axis.HEADS)
    ('hidden', 0, True, True)
    ```
    """

    name: str
    role: Role
    component: Component
    dimensions: tuple[Dimension, ...]
    fan_in: int | None
    fan_out: int | None
    layer: int | None
    module: str

    def axes(self) -> frozenset[Axis]:
        """Return every axis that the parameter has."""
        return frozenset(f for dim in self.dimensions for block in dim for f in block.factors if isinstance(f, Axis))

    def shape(self, sizes: Mapping[Axis, int]) -> tuple[int, ...]:
        """Return the shape of the tensor in a model of these sizes."""
        return tuple(sum(block.size(sizes) for block in dim) for dim in self.dimensions)

    def reads(self, axis: Axis) -> bool:
        """Tell whether the parameter sums over `axis` in the forward pass."""
        return self.fan_in is not None and any(axis in block for block in self.dimensions[self.fan_in])

    def writes(self, axis: Axis) -> bool:
        """Tell whether the output of the parameter lies along `axis`."""
        return self.fan_out is not None and any(axis in block for block in self.dimensions[self.fan_out])


@dataclass(frozen=True)
class NormMap:
    """A normalisation layer, as observed on a tiny model.

    Args:
        module (`str`): its path.
        position (`str`): `"pre"` reads the residual stream before a sublayer, `"post"` normalises the output of a
            sublayer before it joins the stream, `"residual"` is itself the stream (post-LN: BERT, GPT-1), `"final"`
            stands before the readout, `"embedding"` after the embedding, `"inner"` anywhere else (queries and keys).
        centered (`bool`): it subtracts the mean (LayerNorm).
        gain_offset (`float`): the constant added to the stored gain: 1 for norms that store `g - 1` (Gemma), else 0.
        layer (`int` or `None`): the index of the block that holds it.

    Example:

    ```python
    >>> norm = describe(model.config).norms["model.norm"]
    >>> norm.position, norm.centered, norm.gain_offset
    ('final', False, 0.0)
    ```
    """

    module: str
    position: NormPosition
    centered: bool
    gain_offset: float
    layer: int | None


@dataclass(frozen=True)
class ModelMap:
    """A causal language model, described once; growing, shrinking, muP and merging all read this.

    Args:
        model_type (`str`): as in the config.
        sizes (`Mapping[Axis, int]`): the size of every axis the family has.
        fields (`Mapping[Axis, str]`): the config field that sets each axis (GPT-2: `n_inner`).
        derived (`frozenset[Axis]`): axes that follow from others and cannot be set (GPT-2: `HEAD_DIM`).
        frozen (`Mapping[Axis, str]`): axes whose coordinates are not interchangeable, with the reason (ALiBi heads).
        parameters (`Mapping[str, ParameterMap]`): every parameter, by name, in the model's own order.
        tied (`Mapping[str, str]`): for each name that a checkpoint may also hold, the parameter it shares.
        stream_gains (`frozenset[str]`): the parameters with which blocks multiply the residual stream (Doge, Gemma 4).
        norms (`Mapping[str, NormMap]`): every norm, by module path.
        layer_path (`str`): the path of the list of blocks (`"model.layers"`).
        layer_fields (`tuple[str, ...]`): the config fields that hold one entry for each layer.
        embedding_scale (`str` or `None`): `"sqrt"` if the model multiplies the embedding by sqrt(hidden), else `None`.
        proof (`Mapping[Axis, float]`): max |change of a logit| / max |logit| when that axis is permuted, in float64;
            the larger error of models of two sizes.
        proved_on (`PreTrainedConfig`): of the smaller of the two: the same architecture, of a few thousand parameters.
        experts_per_token (`int` or `None`): the routed experts that a token goes through; `None` without experts.

    Example:

    ```python
    >>> described = describe(model.config)
    >>> [parameter.name for parameter in described.with_role("readout", "final_norm")]
    ['model.norm.weight', 'lm_head.weight']
    ```
    """

    model_type: str
    sizes: Mapping[Axis, int]
    fields: Mapping[Axis, str]
    derived: frozenset[Axis]
    frozen: Mapping[Axis, str]
    parameters: Mapping[str, ParameterMap]
    tied: Mapping[str, str]
    stream_gains: frozenset[str]
    norms: Mapping[str, NormMap]
    layer_path: str
    layer_fields: tuple[str, ...]
    embedding_scale: Literal["sqrt"] | None
    proof: Mapping[Axis, float]
    proved_on: PreTrainedConfig
    experts_per_token: int | None = None

    def with_role(self, *roles: Role) -> list[ParameterMap]:
        """Return the parameters that have one of `roles`, in the model's order."""
        return [parameter for parameter in self.parameters.values() if parameter.role in roles]

    def num_parameters(self) -> int:
        """Return the number of scalars, tied weights counted once."""
        return sum(prod(parameter.shape(self.sizes)) for parameter in self.parameters.values())

    def num_active_parameters(self) -> int:
        """Return the number of scalars that one token uses: of routed experts only those it goes through.

        Raises:
            ValueError: if the model has experts and its config does not tell how many a token uses.
        """
        return sum(self._active(parameter) for parameter in self.parameters.values())

    def flops_per_token(self, sequence_length: int, *, training: bool = True) -> float:
        """Return the floating-point operations of matrix products per token, a multiplication and an addition as two.

        Counted are the projections (experts by those that a token goes through), the readout, and the attention
        scores and sums over the full sequence, as they are computed without a causal kernel. Not counted are norms,
        activations, biases, lookups, and what has no attention of queries and keys (recurrent mixers).

        Args:
            sequence_length (`int`): tokens in a row.
            training (`bool`): count the backward pass, which costs twice the forward pass.

        Raises:
            ValueError: if the model has experts and its config does not tell how many a token uses.

        Example:

        ```python
        >>> from transformers import LlamaConfig
        >>> from hf_warmscale import describe
        >>> config = LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4, vocab_size=100,
        ...                      num_hidden_layers=2)
        >>> describe(config).flops_per_token(32)
        579072.0

        ```
        """
        matrices = [each for each in self.parameters.values() if each.fan_in is not None and len(each.dimensions) > 1]
        multiplied = sum(self._active(parameter) for parameter in matrices)
        # A tied readout is not a parameter of its own, yet its product is computed.
        multiplied += sum(
            self._active(self.parameters[name]) for name in self.tied.values() if name not in self._projections()
        )
        layers = {parameter.layer for parameter in matrices}
        multiplied += sequence_length * sum(self._attention_width(layer) for layer in layers)
        return float(2 * multiplied * (3 if training else 1))

    def _projections(self) -> set[str]:
        return {name for name, parameter in self.parameters.items() if parameter.fan_in is not None}

    def _active(self, parameter: ParameterMap) -> int:
        """Return how many of its scalars a token uses."""
        size = prod(parameter.shape(self.sizes))
        # A router's rows are experts too, but a token is scored against all of them.
        stacked = len(parameter.dimensions) > 1 and Block((Axis.EXPERTS,)) in parameter.dimensions[0]
        if not stacked or parameter.role == "router":
            return size
        if self.experts_per_token is None:
            raise ValueError(f"The config of this {self.model_type} does not tell how many experts a token uses.")
        return size * self.experts_per_token // self.sizes[Axis.EXPERTS]

    def _attention_width(self, layer: int | None) -> int:
        """Return the width over all heads of a query plus that of a value, in a layer; 0 without attention."""
        own = [each for each in self.parameters.values() if each.layer == layer and each.component == "attention"]
        values = [
            each.shape(self.sizes)[each.fan_in] for each in own if each.fan_in is not None and each.reads(Axis.HEADS)
        ]
        queries = [
            block for each in own if each.fan_in is not None for block in self._written(each) if Axis.HEADS in block
        ]
        if not values or not queries:
            return 0
        first = queries[0]
        width = (
            Block((Axis.HEADS, Axis.HEAD_DIM)) if Axis.HEAD_DIM in first else first
        )  # fused ones: (HEADS, 3, HEAD_DIM)
        return values[0] + width.size(self.sizes)

    def _written(self, parameter: ParameterMap) -> Dimension:
        return () if parameter.fan_out is None else parameter.dimensions[parameter.fan_out]
