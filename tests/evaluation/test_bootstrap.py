"""The interval covers the truth about as often as it says, and pairing removes what is common."""

import numpy as np
import pytest

from hf_warmscale.evaluation import DocumentNLL, paired_bootstrap


def scores(nll: np.ndarray, tokens: np.ndarray | None = None, prefix: str = "d") -> DocumentNLL:
    tokens = np.full(len(nll), 10) if tokens is None else tokens
    return DocumentNLL(nll, tokens, 4 * tokens, tuple(f"{prefix}{index}" for index in range(len(nll))))


def test_the_estimate_is_the_difference_of_the_token_means() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 100, size=40)
    a, b = scores(rng.gamma(2, size=40) * tokens, tokens), scores(rng.gamma(2, size=40) * tokens, tokens)
    difference = paired_bootstrap(a, b)
    assert difference.estimate == pytest.approx(a.mean - b.mean)
    assert difference.low < difference.estimate < difference.high


def test_swapping_the_models_mirrors_the_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = scores(rng.normal(size=40)), scores(rng.normal(size=40))
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_what_both_models_share_cancels() -> None:
    difficulty = np.random.default_rng(0).normal(scale=1000, size=40)
    difference = paired_bootstrap(scores(difficulty + 1), scores(difficulty))
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1), abs=1e-9)


def test_coverage() -> None:
    """A 90 % interval over 60 documents holds the true difference in 90 % of 300 worlds (binomial sd 1.7 %)."""
    rng = np.random.default_rng(1)
    covered = 0
    for world in range(300):
        noise = rng.normal(loc=0.3, scale=5.0, size=60)
        interval = paired_bootstrap(scores(noise), scores(np.zeros(60)), confidence=0.9, resamples=400, seed=world)
        covered += interval.low <= 0.03 <= interval.high
    assert 0.84 <= covered / 300 <= 0.95


def test_it_is_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(0)
    a, b = scores(rng.normal(size=9)), scores(rng.normal(size=9))
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)


def test_chunks_of_draws_do_not_change_the_number_of_resamples() -> None:
    rng = np.random.default_rng(0)
    many = scores(rng.normal(size=5000))
    assert paired_bootstrap(many, scores(np.zeros(5000)), resamples=1001).low < 0.1


def test_refusals() -> None:
    a = scores(np.ones(4))
    with pytest.raises(ValueError, match="different documents"):
        paired_bootstrap(a, scores(np.ones(4), prefix="e"))
    with pytest.raises(ValueError, match="different tokenizers"):
        paired_bootstrap(a, scores(np.ones(4), np.full(4, 7)))
    with pytest.raises(ValueError, match="at least 2 documents, not 1"):
        paired_bootstrap(scores(np.ones(1)), scores(np.ones(1)))
    with pytest.raises(ValueError, match=r"confidence is 1\.5"):
        paired_bootstrap(a, a, confidence=1.5)
