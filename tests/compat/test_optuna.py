"""Each function of `compat.optuna` against the public behaviour that it stands for."""

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from hf_warmscale.compat.optuna import begin_trial, live_trial

BOX = {"x": FloatDistribution(0.0, 1.0)}


def test_a_trial_begins_running_at_its_point_with_its_attributes() -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    trial = begin_trial(study, storage, params={"x": 0.25}, distributions=BOX, user_attrs={"worker": "me"})
    (stored,) = study.trials
    assert (stored.state, stored.params, stored.user_attrs) == (TrialState.RUNNING, {"x": 0.25}, {"worker": "me"})
    study.tell(trial, 3.0)
    assert study.best_params == {"x": 0.25}


def test_a_stored_trial_can_be_told_by_another_process() -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    begin_trial(study, storage, params={"x": 0.25}, distributions=BOX, user_attrs={})
    (stored,) = study.trials
    trial = live_trial(study, storage, stored)
    trial.set_user_attr("lost", True)
    study.tell(trial, state=TrialState.FAIL)
    (stored,) = study.trials
    assert (stored.state, stored.user_attrs) == (TrialState.FAIL, {"lost": True})
