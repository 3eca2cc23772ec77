"""The next point of a search, as a pure function of the trials so far."""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hf_warmscale.merging.search.quiet import quiet_optuna
from hf_warmscale.merging.search.spaces import Point, Range

RESOLUTION = 1e-4
"""Points nearer than this part of every side of the box are one point: a trial is better spent elsewhere."""
NUM_CANDIDATES = 1024
"""Random points of which the farthest from all tried ones is taken."""


def propose(
    finished: Sequence[FrozenTrial],
    running: Sequence[FrozenTrial],
    ranges: Mapping[str, Range],
    directions: Sequence[StudyDirection],
    *,
    seed: int,
) -> Point:
    """Return the point that Optuna's `GPSampler` proposes, seeded by `seed` and the number of trials.

    The sampler sees copies in a study of its own, so that what a killed process left in the real one decides nothing.
    It may propose a point that has been tried: at an edge of the box, or the best one, where another process is busy
    with all that promises more. A merge's loss has no noise, so the proposal is then the point that is farthest from
    all others (maximin distance; Johnson, Moore and Ylvisaker 1990).

    Args:
        finished (`Sequence[FrozenTrial]`): by number.
        running (`Sequence[FrozenTrial]`): points that other processes are busy with; the proposal keeps clear of them.
        ranges (`Mapping[str, Range]`): the sides of the box.
        directions (`Sequence[StudyDirection]`): of each objective.
        seed (`int`): of the search.
    """
    state = np.random.SeedSequence([seed, len(finished), len(running)]).generate_state(1)
    sampler = optuna.samplers.GPSampler(seed=int(state[0]), n_startup_trials=1, warn_independent_sampling=False)
    with quiet_optuna():
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials([*finished, *running])
        proposal: Point = study.ask(fixed_distributions=distributions(ranges)).params
    tried = [trial.params for trial in (*finished, *running)]
    if any(is_same(proposal, point, ranges) for point in tried):
        return _farthest(tried, ranges, np.random.default_rng(state))
    return proposal


def distributions(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Return the box in Optuna's terms."""
    return {name: FloatDistribution(side.low, side.high, log=side.log) for name, side in ranges.items()}


def is_same(first: Point, second: Point, ranges: Mapping[str, Range]) -> bool:
    """Tell whether two points of the box are too near to each other for two trials."""
    return all(abs(side.unit(first[name]) - side.unit(second[name])) < RESOLUTION for name, side in ranges.items())


def _farthest(tried: Sequence[Point], ranges: Mapping[str, Range], random: np.random.Generator) -> Point:
    """Return the one of some random points whose nearest tried point is farthest, by distance in the unit box."""
    known = np.array([[side.unit(point[name]) for name, side in ranges.items()] for point in tried])
    candidates = random.random((NUM_CANDIDATES, len(ranges)))
    nearest = np.linalg.norm(candidates[:, None] - known, axis=2).min(axis=1)
    chosen = candidates[nearest.argmax()]
    return {name: side.value(float(unit)) for (name, side), unit in zip(ranges.items(), chosen, strict=True)}
