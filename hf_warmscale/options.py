"""The names that a user chooses among, in the one place that functions and command line read.

This module imports nothing heavy, so that `warmscale --help` stays fast.
"""

from typing import Literal, get_args

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
