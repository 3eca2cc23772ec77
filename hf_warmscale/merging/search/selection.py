"""The answer of the select split: which trial won, and which checkpoint alone is best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hf_warmscale.merging.search.confirmation import pick
from hf_warmscale.merging.search.evaluator import VIOLATIONS, weighed
from hf_warmscale.merging.search.spaces import Point
from hf_warmscale.merging.search.trials import Trials, is_complete, is_feasible


@dataclass(frozen=True)
class Selection:
    """Frozen before the confirm split is touched.

    Args:
        winner (`Point`): the winning point of the space.
        single (`int`): index of the best checkpoint alone.
        front (`list[dict]`): with several objectives, the trials that no other beats in all of them.
        num_trials (`int`): finished trials.
    """

    winner: Point
    single: int
    front: list[dict[str, Any]]
    num_trials: int


def choose(trials: Trials, singles: Mapping[int, Mapping[str, Any]], objectives: list[str]) -> Selection:
    """Choose the winner by posterior mean among the best trials, and the best checkpoint by its own value.

    With several objectives the winner is the trial of the Pareto front with the lowest loss over all documents.

    Args:
        trials (`Trials`): the finished search.
        singles (`Mapping[int, Mapping]`): what is known of each checkpoint alone.
        objectives (`list[str]`): the domains that are minimised.

    Raises:
        ValueError: if no trial keeps the limits.
    """
    candidates = [trial for trial in trials.finished() if is_feasible(trial) and is_complete(trial)]
    if not candidates:
        raise ValueError("No trial keeps the limits; raise them, or n_trials.")
    several = len(objectives) > 1
    front = [trial for trial in candidates if several and not any(_dominates(other, trial) for other in candidates)]
    candidates = front or candidates
    losses = [weighed(trial.user_attrs, objectives) for trial in candidates]
    means = losses if several else trials.posterior_means(candidates)
    return Selection(
        winner=candidates[pick(losses, means)].params,
        single=_best_single(singles, objectives),
        front=[
            {"number": t.number, "params": t.params, "values": dict(zip(objectives, t.values, strict=True))}
            for t in front
        ],
        num_trials=len(trials.finished()),
    )


def _dominates(a: FrozenTrial, b: FrozenTrial) -> bool:
    return a.values != b.values and all(x <= y for x, y in zip(a.values, b.values, strict=True))


def _best_single(singles: Mapping[int, Mapping[str, Any]], objectives: list[str]) -> int:
    kept = {index for index, record in singles.items() if all(v <= 0 for v in record[VIOLATIONS].values())}
    return min(kept or singles, key=lambda index: (weighed(singles[index], objectives), -index))
