"""Is one model better than another on the same documents, or is it chance?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Self

import numpy as np
from scipy.stats import bootstrap

from hf_warmscale.evaluation.scores import DocumentNLL, FloatArray

MIN_DOCUMENTS = 2
DRAWN_AT_ONCE = 2**22
"""Documents drawn per batch of resamples: this bounds the memory, not the result."""


@dataclass(frozen=True)
class PairedDifference:
    """A difference in nats per token with its confidence interval; negative if the first model is better.

    Args:
        estimate (`float`): on all documents.
        low (`float`): lower end of the interval.
        high (`float`): upper end of the interval.
        confidence (`float`): nominal coverage of the interval.

    Example:

    ```python
    >>> difference = PairedDifference(estimate=-0.03, low=-0.05, high=-0.01, confidence=0.95)
    >>> difference.high < 0  # the first model is better
    True
    ```
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields, ready for JSON: `None` for infinity."""
        return {name: value if isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, float | None]) -> Self:
        """Read what `to_dict` wrote. Only a model without a finite loss has an infinite difference, to its harm."""
        return cls(**{name: -inf if value is None else value for name, value in content.items()})


def paired_bootstrap(
    a: DocumentNLL, b: DocumentNLL, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Estimate `a.mean - b.mean` with a percentile bootstrap interval over documents.

    Documents are resampled with replacement (Efron and Tibshirani 1993, section 13.3). Both models are scored on the
    same draw, so the difficulty of a document, which they share, cancels.

    Args:
        a (`DocumentNLL`): scores of the first model.
        b (`DocumentNLL`): scores of the second model on the same documents in the same order.
        confidence (`float`): nominal coverage of the interval, between 0 and 1.
        resamples (`int`): number of draws.
        seed (`int`): seed of the draws.

    Raises:
        ValueError: if the documents or their token counts differ, or if there are fewer than two documents.

    Example:

    ```python
    >>> difference = paired_bootstrap(held_out.nll(merged), held_out.nll(last))
    >>> difference.high < 0  # the merged model is better
    ```
    """
    if a.digests != b.digests:
        raise ValueError("The two models were scored on different documents; score both on one EvaluationSet.")
    # Nats per token of two tokenizers have different denominators; bits per byte have one.
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("The two models use different tokenizers; compare their bits_per_byte instead.")
    if len(a) < MIN_DOCUMENTS:
        raise ValueError(f"A paired interval needs at least {MIN_DOCUMENTS} documents, not {len(a)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")
    interval = bootstrap(
        # Two columns, `[documents]` each, drawn together: a document keeps its number of tokens.
        (a.nll - b.nll, a.tokens.astype(np.float64)),
        _mean_per_token,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, DRAWN_AT_ONCE // len(a)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedDifference(a.mean - b.mean, float(interval.low), float(interval.high), confidence)


def _mean_per_token(difference: FloatArray, tokens: FloatArray, axis: int) -> FloatArray:
    """A ratio of sums, not a mean of ratios: every token has the same weight, whatever its document."""
    mean: FloatArray = difference.sum(axis=axis) / tokens.sum(axis=axis)
    return mean
