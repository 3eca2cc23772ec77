"""The next point of a search, as a pure function of the trials so far."""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hf_warmscale.merging.quiet import quiet_optuna
from hf_warmscale.merging.spaces import Point


def propose(
    finished: Sequence[FrozenTrial],
    running: Sequence[FrozenTrial],
    distributions: Mapping[str, BaseDistribution],
    directions: Sequence[StudyDirection],
    *,
    seed: int,
) -> Point:
    """Return the point that Optuna's `GPSampler` proposes, seeded by `seed` and the number of trials.

    The sampler sees copies in a study of its own, so that what a killed process left in the real one decides nothing.

    Args:
        finished (`Sequence[FrozenTrial]`): by number.
        running (`Sequence[FrozenTrial]`): points that other processes are busy with; the proposal keeps clear of them.
        distributions (`Mapping[str, BaseDistribution]`): the box.
        directions (`Sequence[StudyDirection]`): of each objective.
        seed (`int`): of the search.
    """
    state = np.random.SeedSequence([seed, len(finished), len(running)]).generate_state(1)
    sampler = optuna.samplers.GPSampler(seed=int(state[0]), n_startup_trials=1, warn_independent_sampling=False)
    with quiet_optuna():
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials([*finished, *running])
        return study.ask(fixed_distributions=dict(distributions)).params
