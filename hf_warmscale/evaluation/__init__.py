"""Token-level likelihood per document, paired and hashed: every operation of the package is judged by it."""

from hf_warmscale.evaluation.bootstrap import PairedDifference, paired_bootstrap
from hf_warmscale.evaluation.cross_entropy import IGNORE_INDEX, sum_dtype, token_nll
from hf_warmscale.evaluation.evaluation_set import (
    DEFAULT_BATCH_TOKENS,
    EvaluationSet,
    default_max_length,
    document_nll,
    evaluation_mode,
)
from hf_warmscale.evaluation.metric import METRIC_PATH
from hf_warmscale.evaluation.scores import DocumentNLL, NonFiniteLossError

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "IGNORE_INDEX",
    "METRIC_PATH",
    "DocumentNLL",
    "EvaluationSet",
    "NonFiniteLossError",
    "PairedDifference",
    "default_max_length",
    "document_nll",
    "evaluation_mode",
    "paired_bootstrap",
    "sum_dtype",
    "token_nll",
]
