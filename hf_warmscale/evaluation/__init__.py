"""Token-level likelihood per document, paired and hashed: the yardstick of every operation."""

from hf_warmscale.evaluation.bootstrap import PairedDifference, paired_bootstrap
from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.evaluation.evaluation_set import (
    DEFAULT_BATCH_TOKENS,
    EvaluationSet,
    default_max_length,
    document_nll,
)
from hf_warmscale.evaluation.metric import METRIC_PATH
from hf_warmscale.evaluation.scores import DocumentNLL

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "METRIC_PATH",
    "DocumentNLL",
    "EvaluationSet",
    "PairedDifference",
    "default_max_length",
    "document_nll",
    "paired_bootstrap",
    "token_nll",
]
