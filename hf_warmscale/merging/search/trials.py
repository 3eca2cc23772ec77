"""The trials of one search in an Optuna study: asked for, told, swept after a crash, the same after every resume."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hf_warmscale.merging.search.evaluator import STOPPED, VIOLATIONS, Outcome
from hf_warmscale.merging.search.liveness import BEAT_SECONDS, Watch, beating, this_worker
from hf_warmscale.merging.search.posterior import Posterior
from hf_warmscale.merging.search.proposals import distributions, is_same, propose
from hf_warmscale.merging.search.quiet import quiet_optuna
from hf_warmscale.merging.search.spaces import Point, Space

CONFIGURATION = "configuration"
WORKER = "worker"
BEATS = "beats"
START = "start"
IMPROVEMENT = "expected_improvement"
LOST = "lost"


class Trials:
    """A study and what this package keeps in it.

    A proposal depends on the seed and on the finished and the running trials, and on nothing in the process. A trial
    begins as one entry of the storage, with its point and its worker, so that a kill leaves it whole or not at all:
    after it, one worker asks for the same points as if it had not been killed.

    Args:
        storage (`BaseStorage`): where the trials are kept.
        name (`str`): of the study in the storage; it is made if it is not there.
        space (`Space`): what is searched.
        num_objectives (`int`): all are minimised.
        seed (`int`): of the proposals.
        configuration (`Mapping[str, str]`): what a resumed study must agree with.

    Raises:
        ValueError: if the storage holds a study of that name with another configuration.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        *,
        num_objectives: int,
        seed: int,
        configuration: Mapping[str, str],
    ) -> None:
        with quiet_optuna():
            if name in {study.study_name for study in storage.get_all_studies()}:  # writes nothing
                self.study = optuna.load_study(storage=storage, study_name=name)
            else:
                directions = [StudyDirection.MINIMIZE] * num_objectives
                self.study = optuna.create_study(
                    storage=storage, study_name=name, directions=directions, load_if_exists=True
                )
        self._storage = storage
        self._space = space
        self._seed = seed
        self._watch = Watch()
        self._agree(configuration)

    def finished(self) -> list[FrozenTrial]:
        """Return the finished trials by number."""
        return self._in(TrialState.COMPLETE)

    def running(self) -> list[FrozenTrial]:
        """Return the trials that some process is busy with."""
        return self._in(TrialState.RUNNING)

    def sweep(self) -> None:
        """Fail the trials whose worker is gone; their points are tried again."""
        for trial in self.running():
            if self._watch.is_gone(trial.user_attrs[WORKER], trial.number, trial.user_attrs.get(BEATS, 0)):
                self._lose(self._live(trial))

    @contextmanager
    def busy(self, trial: optuna.Trial, *, every: float = BEAT_SECONDS) -> Iterator[None]:
        """Show the other workers every so many seconds, until the block ends, that this one is busy with a trial.

        A trial whose block ends in an error or in Ctrl-C is tried again.
        """

        def beat() -> None:
            with suppress(UpdateFinishedTrialError):  # given up by another worker all the same
                trial.set_user_attr(BEATS, trial.user_attrs.get(BEATS, 0) + 1)

        with ExitStack() as unless_done:
            unless_done.callback(self._lose, trial)
            with beating(beat, every=every):
                yield
            unless_done.pop_all()

    def ask(self, start: tuple[str, Point] | None, *, limit: int) -> optuna.Trial | None:
        """Begin a trial at `start`, else at a point that was lost with its process, else where the sampler proposes.

        Args:
            start (`tuple[str, Point]`, *optional*): a label and the point to try next.
            limit (`int`): how many trials all workers together may finish.

        Returns:
            `Trial` or `None`: nothing if in the same moment another worker began a trial at this point, or the last
            one of the limit; ask again.
        """
        seen = self._in(TrialState.COMPLETE, TrialState.RUNNING)
        finished, running = (
            [t for t in seen if t.state == state] for state in (TrialState.COMPLETE, TrialState.RUNNING)
        )
        attributes: dict[str, Any] = {WORKER: this_worker()}
        if start is not None:
            attributes[START], point = start
        else:
            point = self._lost() or propose(
                finished, running, self._space.ranges, self.study.directions, seed=self._seed
            )
            if len(self.study.directions) == 1 and len(finished) > 1:
                attributes[IMPROVEMENT] = self._expected_improvement(point, finished)
        trial = self._begin(point, attributes)
        # Read at once: a rival that finishes between two reads, one for each state, would be in neither.
        others = self._in(TrialState.COMPLETE, TrialState.RUNNING)
        earlier = [other for other in others if other.number < trial.number]
        known = {other.number for other in finished}
        rivals = [other for other in earlier if other.number not in known]
        if len(earlier) >= limit or any(is_same(other.params, trial.params, self._space.ranges) for other in rivals):
            self.fail(trial)
            return None
        return trial

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Finish a trial with what it gave; nothing happens if another worker has given it up meanwhile."""
        with suppress(UpdateFinishedTrialError):
            for domain, violation in outcome.violations.items():
                trial.set_constraint(domain, violation)
            for key, value in outcome.to_dict().items():
                trial.set_user_attr(key, value)
            self.study.tell(trial, list(outcome.values), skip_if_finished=True)

    def fail(self, trial: optuna.Trial) -> None:
        """Give a trial up."""
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def converged(self, tolerance: float, patience: int) -> bool:
        """Tell whether the last `patience` proposals in a row promised less than `tolerance` nats each."""
        promised = [trial.user_attrs.get(IMPROVEMENT) for trial in self.finished()][-patience:]
        return len(promised) == patience and all(each is not None and each < tolerance for each in promised)

    def posterior(self, trials: Sequence[FrozenTrial]) -> Posterior:
        """Return what finished trials tell about the first objective."""
        return Posterior.fit([self._unit(trial.params) for trial in trials], [trial.values[0] for trial in trials])

    def posterior_means(self, trials: Sequence[FrozenTrial]) -> list[float]:
        """Return the posterior mean of the first objective at the points of `trials`, nats per token."""
        if len(self.finished()) < 2:
            return [trial.values[0] for trial in trials]
        mean, _ = self.posterior(self.finished()).predict([self._unit(trial.params) for trial in trials])
        return [float(value) for value in mean]

    def note(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep something with the study."""
        self.study.set_user_attr(key, dict(value))

    def noted(self, key: str) -> dict[str, Any] | None:
        """Return what was kept with the study, or `None`."""
        value: dict[str, Any] | None = self.study.user_attrs.get(key)
        return value

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every trial as a row of `merge_study.jsonl`."""
        for trial in self.study.get_trials(deepcopy=False):
            yield {
                "number": trial.number,
                "state": trial.state.name,
                "params": trial.params,
                "values": trial.values,
                **{key: value for key, value in trial.user_attrs.items() if key not in (WORKER, BEATS)},
                "seconds": trial.duration.total_seconds() if trial.duration else None,
            }

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _begin(self, point: Point, attributes: dict[str, Any]) -> optuna.Trial:
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(point),
            distributions=distributions(self._space.ranges),
            user_attrs=attributes,
        )
        study = self._storage.get_study_id_from_name(self.study.study_name)
        return optuna.Trial(self.study, self._storage.create_new_trial(study, template_trial=template))

    def _live(self, trial: FrozenTrial) -> optuna.Trial:
        study = self._storage.get_study_id_from_name(self.study.study_name)
        number = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        return optuna.Trial(self.study, number)

    def _lose(self, trial: optuna.Trial) -> None:
        """Fail a trial whose point is to be tried again."""
        with suppress(UpdateFinishedTrialError):  # another worker was faster
            trial.set_user_attr(LOST, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _lost(self) -> Point | None:
        """The first proposal that was lost with its process and that no later trial has tried."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            is_proposal = LOST in trial.user_attrs and START not in trial.user_attrs
            if is_proposal and all(later.params != trial.params for later in trials[trial.number + 1 :]):
                return trial.params
        return None

    def _unit(self, params: Mapping[str, float]) -> list[float]:
        return [side.unit(params[name]) for name, side in self._space.ranges.items()]

    def _expected_improvement(self, params: Mapping[str, float], finished: Sequence[FrozenTrial]) -> float:
        feasible = [trial.values[0] for trial in finished if is_feasible(trial)]
        incumbent = min(feasible, default=max(trial.values[0] for trial in finished))
        return float(self.posterior(finished).expected_improvement([self._unit(params)], incumbent)[0])

    def _agree(self, configuration: Mapping[str, str]) -> None:
        known = self.noted(CONFIGURATION)
        if known is None:
            self.note(CONFIGURATION, configuration)
            return
        for key in sorted(known.keys() | configuration.keys()):
            if known.get(key) != configuration.get(key):
                raise ValueError(
                    f"The study {self.study.study_name!r} was made with another {key} ({known.get(key)}, now "
                    f"{configuration.get(key)}); choose another output, storage or study_name."
                )


def is_complete(trial: FrozenTrial) -> bool:
    """Tell whether a finished trial was scored on all documents."""
    return not trial.user_attrs.get(STOPPED, False)


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether a finished trial keeps all limits."""
    return all(violation <= 0 for violation in trial.user_attrs.get(VIOLATIONS, {}).values())
