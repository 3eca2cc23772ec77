"""What this package needs of Optuna beyond its public API; a test of each function says what broke."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial


def begin_trial(
    study: optuna.Study,
    storage: BaseStorage,
    *,
    params: Mapping[str, float],
    distributions: Mapping[str, BaseDistribution],
    user_attrs: Mapping[str, Any],
) -> optuna.Trial:
    """Begin a running trial at a given point in one write, so that a kill leaves all of it or nothing.

    `Study.ask` writes the trial, each parameter and each attribute one after another.
    """
    template = create_trial(
        state=TrialState.RUNNING, params=dict(params), distributions=dict(distributions), user_attrs=dict(user_attrs)
    )
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.create_new_trial(study_id, template_trial=template))


def live_trial(study: optuna.Study, storage: BaseStorage, trial: FrozenTrial) -> optuna.Trial:
    """Return the handle of a stored trial, which another process may have begun, so that it can be told."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, trial.number))
