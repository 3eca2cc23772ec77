"""Is one model better than another on the same documents, or is it chance?"""

from dataclasses import asdict, dataclass

import numpy as np

from hf_warmscale.evaluation.scores import DocumentNLL, FloatArray

MIN_DOCUMENTS = 2


@dataclass(frozen=True)
class PairedDifference:
    """A difference in nats per token with its interval; negative if the first model is better.

    Args:
        estimate (`float`): on all documents.
        low (`float`): lower end of the interval.
        high (`float`): upper end of the interval.
        confidence (`float`): coverage that the interval aims at.
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def paired_bootstrap(
    a: DocumentNLL, b: DocumentNLL, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Estimate `a.mean - b.mean` with a percentile interval over resampled documents.

    The percentile bootstrap of Efron and Tibshirani (1993), section 13.3. Documents are drawn with replacement,
    both models on the same draw, so what makes a document hard for both cancels.

    Args:
        a (`DocumentNLL`): scores of the first model.
        b (`DocumentNLL`): scores of the second model on the same documents in the same order.
        confidence (`float`): coverage of the interval.
        resamples (`int`): number of draws.
        seed (`int`): of the draws.

    Raises:
        ValueError: if the documents or their tokens differ, or if there are fewer than two.

    Example:

    ```python
    >>> difference = paired_bootstrap(held_out.nll(merged), held_out.nll(last))
    >>> difference.high < 0  # the merged model is better
    ```
    """
    if a.digests != b.digests:
        raise ValueError("The two models were scored on different documents; score both on one EvaluationSet.")
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("The two models use different tokenizers; compare their bits_per_byte instead.")
    if len(a) < MIN_DOCUMENTS:
        raise ValueError(f"A paired interval needs at least {MIN_DOCUMENTS} documents, not {len(a)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")
    means = _resampled_means(a.nll - b.nll, a.tokens.astype(np.float64), resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedDifference(a.mean - b.mean, float(low), float(high), confidence)


def _resampled_means(difference: FloatArray, tokens: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Token-weighted mean of `difference` for each draw of documents: a ratio of two sums."""
    rng = np.random.default_rng(seed)
    documents = len(difference)
    rows = max(1, 2**22 // documents)
    means = []
    for first in range(0, resamples, rows):
        drawn = rng.integers(documents, size=(min(rows, resamples - first), documents))
        means.append(difference[drawn].sum(axis=1) / tokens[drawn].sum(axis=1))
    return np.concatenate(means)
