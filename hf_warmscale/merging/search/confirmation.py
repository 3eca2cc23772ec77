"""Is the best merge of a search really better? Chosen on one split, judged once on another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_warmscale.evaluation import PairedDifference, paired_bootstrap
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.search.evaluator import Evaluator, Scores, overall
from hf_warmscale.merging.weights import uniform_weights, vertex

SAME = 1e-9
TOP = 3
"""Trials among which the posterior mean decides: the best value observed is partly luck."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A merge, or a checkpoint alone, that is judged on the confirm split.

    Args:
        name (`str`): for tables.
        weights (`CheckpointWeights`): how it is made.
        scores (`Scores`): on the confirm split, by domain.
    """

    name: str
    weights: CheckpointWeights
    scores: Scores


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What the confirm split says of the winner of a search.

    Args:
        accepted (`bool`): the winner is better than the best single checkpoint, beyond chance.
        weights (`CheckpointWeights`): the winner's if it is accepted, else those of the best single checkpoint.
        interval (`PairedDifference`): winner minus best single checkpoint, nats per token.
        interval_uniform (`PairedDifference`): winner minus uniform average, nats per token.
        verdict (`str`): the answer in words.
        domains (`list[dict]`): a row for each domain.
    """

    accepted: bool
    weights: CheckpointWeights
    interval: PairedDifference
    interval_uniform: PairedDifference
    verdict: str
    domains: list[dict[str, Any]]


def pick(values: Sequence[float], posterior_means: Sequence[float]) -> int:
    """Return the index with the best posterior mean among the `TOP` best values."""
    top = sorted(range(len(values)), key=lambda index: (values[index], index))[:TOP]
    return min(top, key=lambda index: (posterior_means[index], values[index], index))


def confirm_winner(
    evaluator: Evaluator,
    winner: CheckpointWeights,
    single: int,
    count: int,
    *,
    tolerance: float,
    confidence: float,
    noun: str = "checkpoint",
) -> Confirmation:
    """Compare the winner with the best single checkpoint and with the uniform average.

    Args:
        evaluator (`Evaluator`): of the confirm split.
        winner (`CheckpointWeights`): frozen before the confirm split was seen.
        single (`int`): the best single checkpoint of the select split.
        count (`int`): number of checkpoints.
        tolerance (`float`): nats per token; a smaller gain is none.
        confidence (`float`): of the intervals.
        noun (`str`): what is merged, for the verdict.

    Raises:
        ValueError: if the confirm split gives a single number, which has no interval.
    """
    scored: dict[str, Contender] = {}

    def contender(name: str, weights: CheckpointWeights) -> Contender:
        key = repr(weights)
        if key not in scored:
            scored[key] = Contender(name, weights, evaluator.scores(weights))
        return scored[key]

    alone = contender(f"{noun} {single + 1} of {count}", vertex(count, single))
    last = contender(f"the last {noun}", vertex(count, count - 1))
    uniform = contender("the uniform average", uniform_weights(count))
    best = alone if _same(winner, alone.weights) else contender("the winner", winner)
    objectives = evaluator.objectives
    interval = _difference(best, alone, objectives, confidence)
    interval_uniform = _difference(best, uniform, objectives, confidence)
    broken = [domain for domain, violation in evaluator.violations(best.scores).items() if violation > 0]
    accepted = best is not alone and interval.high < -tolerance and not broken
    return Confirmation(
        accepted=accepted,
        weights=winner if accepted else alone.weights,
        interval=interval,
        interval_uniform=interval_uniform,
        verdict=_sentence(best, alone, interval, interval_uniform, broken, accepted),
        domains=[
            _row(domain, {"winner": best, "single": alone, "uniform": uniform, "last": last}, confidence)
            for domain in evaluator.yardsticks
        ],
    )


def _same(a: CheckpointWeights, b: CheckpointWeights) -> bool:
    if isinstance(a, Mapping):
        return all(_same(each, b) for each in a.values())
    assert not isinstance(b, Mapping)
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < SAME


def _difference(a: Contender, b: Contender, objectives: list[str], confidence: float) -> PairedDifference:
    one, two = overall(a.scores, objectives), overall(b.scores, objectives)
    if len(one) == 1:
        raise ValueError("confirm gives one number, which has no interval; return the loss of each example.")
    return paired_bootstrap(one, two, confidence=confidence)


def _sentence(
    winner: Contender,
    single: Contender,
    interval: PairedDifference,
    interval_uniform: PairedDifference,
    broken: list[str],
    accepted: bool,
) -> str:
    measured = f"{interval.estimate:+.4f} nats per token, {interval.confidence:.0%} interval {_ends(interval)}"
    if winner is single:
        return f"No merge: the best point of the search is {single.name} itself."
    if broken:
        return f"No merge: on the confirm split the winner exceeds the limit of {', '.join(broken)}."
    if not accepted:
        return f"No merge: the winner is not better than {single.name} beyond chance ({measured})."
    against = "better than" if interval_uniform.high < 0 else "no better than"
    return (
        f"Merge: better than {single.name} ({measured}), and {against} the uniform average "
        f"({interval_uniform.estimate:+.4f}, {_ends(interval_uniform)})."
    )


def _ends(interval: PairedDifference) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _row(domain: str, contenders: Mapping[str, Contender], confidence: float) -> dict[str, Any]:
    """Before is the best single checkpoint, after the winner, nats per token."""
    means = {name: each.scores[domain].mean for name, each in contenders.items()}
    interval = _difference(contenders["winner"], contenders["single"], [domain], confidence)
    return {
        "domain": domain,
        "metric": "nats per token",
        "last": means["last"],
        "uniform": means["uniform"],
        "before": means["single"],
        "after": means["winner"],
        "difference": interval.estimate,
        "interval": [interval.low, interval.high],
    }
