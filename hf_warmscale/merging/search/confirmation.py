"""Is the best merge of a search really better? Selected on one split, judged once on another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hf_warmscale.evaluation import NonFiniteLossError, PairedDifference, paired_bootstrap
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.search.evaluator import VIOLATIONS, Evaluator, Scores, overall, weighed
from hf_warmscale.merging.search.spaces import Point
from hf_warmscale.merging.search.trials import Trials, is_complete, is_feasible
from hf_warmscale.merging.weights import one_hot_weights, uniform_weights

SAME = 1e-9
TOP = 3
"""The number of best trials among which the posterior mean decides: the best observed value is partly luck."""


@dataclass(frozen=True)
class Selection:
    """The answer of the select split, fixed before the confirm split is used.

    Args:
        winner (`Point`): the winning point of the space.
        single (`int`): the index of the best checkpoint alone.
        front (`list[dict]`): with several objectives, the trials that no other trial beats in all of them.
        num_trials (`int`): the number of finished trials.
    """

    winner: Point
    single: int
    front: list[dict[str, Any]]
    num_trials: int


@dataclass(frozen=True, eq=False)
class Contender:
    """A merge, or a checkpoint alone, that is judged on the confirm split.

    Args:
        name (`str`): for the verdict.
        weights (`CheckpointWeights`): of the merge.
        scores (`Scores` or `None`): on the confirm split, by domain; `None` if its loss is not finite.
    """

    name: str
    weights: CheckpointWeights
    scores: Scores | None


@dataclass(frozen=True, eq=False)
class Confirmation:
    """The judgement of the confirm split on the winner of a search.

    Args:
        accepted (`bool`): whether the winner is better than the best single checkpoint, beyond chance.
        weights (`CheckpointWeights`): the winner's if it is accepted, else those of the best single checkpoint.
        interval (`PairedDifference`): winner minus best single checkpoint, nats per token.
        interval_uniform (`PairedDifference`): winner minus uniform average, nats per token; minus infinity if the
            uniform average has no finite loss.
        verdict (`str`): the answer in words.
        domains (`list[dict]`): a row for each domain.
    """

    accepted: bool
    weights: CheckpointWeights
    interval: PairedDifference
    interval_uniform: PairedDifference
    verdict: str
    domains: list[dict[str, Any]]


def select_winner(trials: Trials, singles: Mapping[int, Mapping[str, Any] | None], minimised: list[str]) -> Selection:
    """Select the winner by posterior mean among the best trials, and the best checkpoint by its own value.

    With several objectives the winner is the trial of the Pareto front with the lowest loss over all documents.

    Args:
        trials (`Trials`): the finished search.
        singles (`Mapping[int, Mapping | None]`): the outcome of each checkpoint alone, `None` if it failed.
        minimised (`list[str]`): the domains that are minimised.

    Raises:
        ValueError: if no trial keeps the limits.
    """
    candidates = [trial for trial in trials.finished() if is_feasible(trial) and is_complete(trial)]
    if not candidates:
        raise ValueError("No trial keeps the limits; raise them, or n_trials.")
    several = len(minimised) > 1
    front = [trial for trial in candidates if several and not any(_dominates(other, trial) for other in candidates)]
    candidates = front or candidates
    losses = [weighed(trial.user_attrs, minimised) for trial in candidates]
    # The Gaussian process is fitted to one objective; with several the measured losses decide.
    means = losses if several else trials.posterior_means(candidates)
    return Selection(
        winner=candidates[pick(losses, means)].params,
        single=_best_single({index: record for index, record in singles.items() if record is not None}, minimised),
        front=[
            {"number": t.number, "params": t.params, "values": dict(zip(minimised, t.values, strict=True))}
            for t in front
        ],
        num_trials=len(trials.finished()),
    )


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
    kind: str = "checkpoint",
) -> Confirmation:
    """Compare the winner with the best single checkpoint and with the uniform average.

    Args:
        evaluator (`Evaluator`): of the confirm split.
        winner (`CheckpointWeights`): fixed before the confirm split was used.
        single (`int`): the best single checkpoint of the select split.
        count (`int`): the number of checkpoints.
        tolerance (`float`): nats per token; a smaller gain counts as none.
        confidence (`float`): of the intervals.
        kind (`str`): the noun of the merged models, for the verdict.

    Raises:
        NonFiniteLossError: if the best single checkpoint has no finite loss.
        ValueError: if the confirm split gives a single number, which has no interval.
    """
    scored: dict[str, Contender] = {}

    def contender(name: str, weights: CheckpointWeights) -> Contender:
        # The winner may be a checkpoint alone or the uniform average, and the best checkpoint the last: each is scored
        # once.
        key = repr(weights)
        if key not in scored:
            try:
                scores = evaluator.scores(weights)
            except NonFiniteLossError:  # a reference that diverged is shown as such; the others are still judged
                scores = None
            scored[key] = Contender(name, weights, scores)
        return scored[key]

    alone = contender(f"{kind} {single + 1} of {count}", one_hot_weights(count, single))
    last = contender(f"the last {kind}", one_hot_weights(count, count - 1))
    uniform = contender("the uniform average", uniform_weights(count))
    # By value, not by `repr`: a proposal may come within rounding of a checkpoint alone.
    best = alone if _same(winner, alone.weights) else contender("the winner", winner)
    if alone.scores is None:
        raise NonFiniteLossError(f"On the confirm split {alone.name} has no finite loss; check its weights.")
    failed = best.scores is None
    best = alone if failed else best
    interval = _difference(best, alone, evaluator.minimised, confidence)
    interval_uniform = _difference(best, uniform, evaluator.minimised, confidence)
    broken = [domain for domain, excess in evaluator.violations(_finite(best)).items() if excess > 0]
    # The whole interval must lie beyond the tolerance: a significant but useless gain is no reason to merge.
    accepted = best is not alone and interval.high < -tolerance and not broken
    return Confirmation(
        accepted=accepted,
        weights=winner if accepted else alone.weights,
        interval=interval,
        interval_uniform=interval_uniform,
        verdict=(
            "No merge: on the confirm split the winner has no finite loss."
            if failed
            else _sentence(best, alone, interval, interval_uniform, broken, accepted)
        ),
        domains=[
            _row(domain, {"winner": best, "single": alone, "uniform": uniform, "last": last}, confidence)
            for domain in evaluator.domains
        ],
    )


def _dominates(a: FrozenTrial, b: FrozenTrial) -> bool:
    return a.values != b.values and all(x <= y for x, y in zip(a.values, b.values, strict=True))


def _best_single(singles: Mapping[int, Mapping[str, Any]], minimised: list[str]) -> int:
    """Return the best checkpoint alone; those that keep the limits come first, and of equal ones the latest."""
    # By definition the last checkpoint keeps the limits, so `feasible` is empty only if it was not scored.
    feasible = {index for index, record in singles.items() if all(v <= 0 for v in record[VIOLATIONS].values())}
    return min(feasible or singles, key=lambda index: (weighed(singles[index], minimised), -index))


def _same(a: CheckpointWeights, b: CheckpointWeights) -> bool:
    if isinstance(a, Mapping):
        return all(_same(each, b) for each in a.values())
    assert not isinstance(b, Mapping)
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < SAME


def _finite(contender: Contender) -> Scores:
    assert contender.scores is not None
    return contender.scores


def _difference(a: Contender, b: Contender, minimised: list[str], confidence: float) -> PairedDifference:
    if b.scores is None:
        return PairedDifference(-math.inf, -math.inf, -math.inf, confidence)
    one, two = overall(_finite(a), minimised), overall(b.scores, minimised)
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
    if math.isinf(interval_uniform.estimate):
        return f"Merge: better than {single.name} ({measured}); the uniform average has no finite loss."
    against = "better than" if interval_uniform.high < 0 else "no better than"
    return (
        f"Merge: better than {single.name} ({measured}), and {against} the uniform average "
        f"({interval_uniform.estimate:+.4f}, {_ends(interval_uniform)})."
    )


def _ends(interval: PairedDifference) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _row(domain: str, contenders: Mapping[str, Contender], confidence: float) -> dict[str, Any]:
    """Return a row of nats per token: before is the best single checkpoint, after the winner."""
    means = {name: each.scores[domain].mean if each.scores else None for name, each in contenders.items()}
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
