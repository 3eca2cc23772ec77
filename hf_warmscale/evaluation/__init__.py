"""Token-level likelihood per document, paired and hashed: the yardstick of every operation."""

from hf_warmscale.evaluation.bootstrap import PairedDifference, paired_bootstrap
from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.evaluation.evaluation_set import EvaluationSet, document_nll
from hf_warmscale.evaluation.metric import METRIC_PATH
from hf_warmscale.evaluation.scores import DocumentNLL

__all__ = [
    "METRIC_PATH",
    "DocumentNLL",
    "EvaluationSet",
    "PairedDifference",
    "document_nll",
    "paired_bootstrap",
    "token_nll",
]
