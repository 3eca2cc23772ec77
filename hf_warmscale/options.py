"""The names that a user chooses among, in the one place that functions and command line read.

This module imports nothing heavy, so that `warmscale --help` stays fast.
"""

from typing import Annotated, Literal, TypedDict, get_args

WidthName = Literal["clone", "szp", "zero_pad", "net2net"]
"""Operators that widen a model."""

DepthOperator = Literal["stack", "interleave", "identity", "dus"]
"""Operators that deepen a model."""

MergeMethod = Literal["linear", "slerp", "task_arithmetic", "ties", "dare", "model_stock"]
"""Merges with given weights."""

SpaceName = Literal["pair", "trajectory", "simplex", "groups", "lora"]
"""Spaces of merge weights to search."""

Average = Literal["swa", "lawa", "ema", "wsm-linear", "wsm-1-sqrt", "wsm-cosine", "wsm-exponential"]
"""Averages over the constant phase of a run."""

ExportTarget = Literal["llama", "granite"]
"""Stock families that a muP checkpoint is written as."""

RuleName = Literal["standard", "mup", "completep"]
"""Parametrizations of a muP study."""

LawForm = Literal["chinchilla", "power", "grown"]
"""Forms of scaling laws: `E + A/N^alpha + B/D^beta` (2203.15556); `a N^b + c` at fixed data (2304.06875); Chinchilla
with tokens transferred from a smaller base, `D + k D0^p g^-q` (the form of 2102.01293; g = N / N0)."""

LossUnit = Literal["nats", "bits"]
"""Units of a loss: nats per token, or bits per byte, which models with different vocabularies share."""

WIDTHS: tuple[WidthName, ...] = get_args(WidthName)
DEPTHS: tuple[DepthOperator, ...] = get_args(DepthOperator)
MERGE_METHODS: tuple[MergeMethod, ...] = get_args(MergeMethod)
SPACES: tuple[SpaceName, ...] = get_args(SpaceName)
AVERAGES: tuple[Average, ...] = get_args(Average)
EXPORT_TARGETS: tuple[ExportTarget, ...] = get_args(ExportTarget)
RULES: tuple[RuleName, ...] = get_args(RuleName)
LAWS: tuple[LawForm, ...] = get_args(LawForm)
LOSS_UNITS: tuple[LossUnit, ...] = get_args(LossUnit)


class Sizes(TypedDict, total=False):
    """The sizes of a model, for growing and shrinking; `None`, or no entry, keeps the source's size.

    The names of transformers' configs hold in every family. A family's own names, such as GPT-2's `n_embd`, are
    accepted too. A size with a description is an option of the command line.
    """

    hidden_size: Annotated[int | None, "width of the residual stream"]
    intermediate_size: Annotated[int | None, "neurons of an MLP"]
    num_attention_heads: Annotated[int | None, "query heads"]
    num_key_value_heads: Annotated[int | None, "key-value heads"]
    num_hidden_layers: Annotated[int | None, "blocks"]
    vocab_size: Annotated[int | None, "tokens"]
    num_experts: int | None
    moe_intermediate_size: int | None
    shared_expert_intermediate_size: int | None
    head_dim: int | None
    # Families' own names.
    d_model: int | None
    n_embd: int | None
    n_inner: int | None
    n_head: int | None
    n_layer: int | None
    ffn_dim: int | None
    num_kv_heads: int | None
    num_local_experts: int | None
    n_routed_experts: int | None
    shared_intermediate_size: int | None
