"""The next point of a search, as a pure function of the trials so far."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hf_warmscale.merging.search.spaces import Point, Range

RESOLUTION = 1e-4
"""Points closer than this fraction of every side of the box count as one: a trial is better spent elsewhere."""
NUM_CANDIDATES = 1024
"""Random points of which the farthest from all tried ones is taken."""


def propose(
    finished: Sequence[FrozenTrial],
    running: Sequence[FrozenTrial],
    ranges: Mapping[str, Range],
    directions: Sequence[StudyDirection],
    *,
    seed: int,
    failed: Sequence[FrozenTrial] = (),
) -> Point:
    """Return the point that Optuna's `GPSampler` proposes, seeded by `seed` and the number of trials.

    The sampler sees copies of the trials in a temporary study, so nothing that a killed process left in the real one
    can influence it. It may propose a point that was already tried: one at an edge of the box, or the best one so far
    while other processes score every more promising point. A merge's loss has no noise, so such a proposal is replaced
    by the point that is farthest from all others (maximin distance; Johnson, Moore and Ylvisaker 1990).

    Args:
        finished (`Sequence[FrozenTrial]`): by number.
        running (`Sequence[FrozenTrial]`): trials of other processes; the proposal keeps its distance from them.
        ranges (`Mapping[str, Range]`): the sides of the box.
        directions (`Sequence[StudyDirection]`): of each objective.
        seed (`int`): of the search.
        failed (`Sequence[FrozenTrial]`): trials without a finite loss; the sampler takes each for as bad as the worst
            finished trial, so that it leaves their neighbourhood.
    """
    # Counts of ended and running trials, not trial numbers: a lost trial uses up a number, and a resumed search must
    # still propose what an undisturbed one would.
    counts = [len(finished), len(running), *([len(failed)] if failed else [])]
    state = np.random.SeedSequence([seed, *counts]).generate_state(1)
    sampler = optuna.samplers.GPSampler(seed=int(state[0]), n_startup_trials=1, warn_independent_sampling=False)
    with quiet():
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials([*finished, *running, *_as_bad_as_the_worst(failed, finished)])
        proposal: Point = study.ask(fixed_distributions=distributions(ranges)).params
    tried = [trial.params for trial in (*finished, *running, *failed)]
    if any(is_same(proposal, point, ranges) for point in tried):
        # The same entropy as the sampler's, so this proposal too depends on nothing in the process.
        return _farthest(tried, ranges, np.random.default_rng(state))
    return proposal


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna log warnings only: it logs a line for every study and trial."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def distributions(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Return the box in Optuna's terms."""
    return {name: FloatDistribution(side.low, side.high, log=side.log) for name, side in ranges.items()}


def is_same(first: Point, second: Point, ranges: Mapping[str, Range]) -> bool:
    """Tell whether two points of the box are too close for two trials."""
    return all(abs(side.unit(first[name]) - side.unit(second[name])) < RESOLUTION for name, side in ranges.items())


def _as_bad_as_the_worst(failed: Sequence[FrozenTrial], finished: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Optuna's samplers ignore failed trials, and would propose their neighbours again and again."""
    if not finished:
        return []
    worst = [max(values) for values in zip(*(trial.values for trial in finished), strict=True)]
    return [
        create_trial(state=TrialState.COMPLETE, params=trial.params, distributions=trial.distributions, values=worst)
        for trial in failed
    ]


def _farthest(tried: Sequence[Point], ranges: Mapping[str, Range], random: np.random.Generator) -> Point:
    """Return, of some random points, the one farthest from its nearest tried point, measured in the unit box."""
    known = np.array([[side.unit(point[name]) for name, side in ranges.items()] for point in tried])
    candidates = random.random((NUM_CANDIDATES, len(ranges)))
    # `[candidates, tried]` distances, reduced to the nearest tried point of each candidate.
    nearest = np.linalg.norm(candidates[:, None] - known, axis=2).min(axis=1)
    chosen = candidates[nearest.argmax()]
    return {name: side.value(float(unit)) for (name, side), unit in zip(ranges.items(), chosen, strict=True)}
