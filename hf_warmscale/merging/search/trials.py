"""The trials of one search in an Optuna study: begun, finished, cleaned up after a crash, equal after every resume."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hf_warmscale.checkpoints import FORMAT_VERSION, check_format_version
from hf_warmscale.compat.optuna import begin_trial, live_trial
from hf_warmscale.merging.search.evaluator import STOPPED, VIOLATIONS, Outcome
from hf_warmscale.merging.search.liveness import BEAT_SECONDS, Watch, beating, this_worker
from hf_warmscale.merging.search.posterior import Posterior
from hf_warmscale.merging.search.proposals import distributions, is_same, propose, quiet
from hf_warmscale.merging.search.spaces import Point, Space

STUDY_VERSION = 1
"""Of the attributes below. Version 0.1.0 of this package wrote the same ones without the version."""
CONFIGURATION = "configuration"
WORKER = "worker"
TOKEN = "token"
BEATS = "beats"
INITIAL = "start"
IMPROVEMENT = "expected_improvement"
LOST = "lost"
FAILED = "failed"

_BEGUN: set[str] = set()
"""Tokens of the trials that this process has begun and not yet ended. A trial of this process whose token is not here
was left behind by an earlier search, for example because its storage could not be written."""


class Trials:
    """A study, and what this package stores in it.

    A proposal depends on the seed and on the trials so far, and on nothing in the process. A trial begins with one
    entry in the storage, which holds its point and its worker, so a kill leaves all of it or nothing: afterwards a
    worker asks for the same points as if there had been no kill.

    A trial ends in one of four ways. It is *finished* with its losses; *failed*, if its merge has no finite loss, and
    then not tried again; *lost* with its worker, and then its point is tried again; or given up at once because
    another worker was faster.

    Args:
        storage (`BaseStorage`): the storage of the trials.
        name (`str`): of the study in the storage; it is created if it does not exist.
        space (`Space`): the space that is searched.
        num_objectives (`int`): all are minimised.
        seed (`int`): of the proposals.
        configuration (`Mapping[str, str]`): must be the same when a study is resumed.

    Raises:
        ValueError: if the storage holds a study of that name with another configuration, or of a newer version.
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
        with quiet():
            # `load_if_exists` alone would write an entry into the journal on every resume.
            if name in {study.study_name for study in storage.get_all_studies()}:  # a lookup that writes nothing
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
        """Return the trials that some process is scoring."""
        return self._in(TrialState.RUNNING)

    def failed(self) -> list[FrozenTrial]:
        """Return the trials whose merge has no finite loss, by number."""
        return [trial for trial in self._in(TrialState.FAIL) if FAILED in trial.user_attrs]

    def sweep(self) -> None:
        """End the trials whose worker is gone; their points are tried again."""
        for trial in self.running():
            worker = trial.user_attrs[WORKER]
            # A living process does not prove a living trial: an earlier search of this very process may have left it.
            left_behind = worker == this_worker() and trial.user_attrs.get(TOKEN) not in _BEGUN
            if left_behind or self._watch.is_gone(worker, trial.number, trial.user_attrs.get(BEATS, 0)):
                self._lose(live_trial(self.study, self._storage, trial))

    @contextmanager
    def busy(self, trial: optuna.Trial, *, every: float = BEAT_SECONDS) -> Iterator[None]:
        """Signal to the other workers, every `every` seconds until the block ends, that this one is scoring a trial.

        The point of a trial whose block ends in an error or in Ctrl-C is tried again.
        """

        def beat() -> None:
            with suppress(UpdateFinishedTrialError):  # another worker gave it up all the same
                trial.set_user_attr(BEATS, trial.user_attrs.get(BEATS, 0) + 1)

        # Not `except`: Ctrl-C and every error take the same way, and only a block that ends well pops the callback.
        with ExitStack() as unless_done:
            unless_done.callback(self._lose, trial)
            with beating(beat, every=every):
                yield
            unless_done.pop_all()

    def ask(self, initial: tuple[str, Point] | None, *, limit: int) -> optuna.Trial | None:
        """Begin a trial at `initial`, else at a point that was lost with its worker, else where the sampler proposes.

        Args:
            initial (`tuple[str, Point]`, *optional*): a label and the point to try next.
            limit (`int`): the number of trials that all workers together may end.

        Returns:
            `Trial` or `None`: `None` if at the same moment another worker began a trial at this point, or the last
            trial within the limit; then ask again.
        """
        failed = self.failed()
        seen = self._in(TrialState.COMPLETE, TrialState.RUNNING)
        finished, running = (
            [t for t in seen if t.state == state] for state in (TrialState.COMPLETE, TrialState.RUNNING)
        )
        attributes: dict[str, Any] = {WORKER: this_worker(), TOKEN: uuid4().hex}
        if initial is not None:
            attributes[INITIAL], point = initial
        else:
            # The lost point first: an undisturbed search would have tried it, and all later proposals depend on it.
            point = self._lost() or propose(
                finished, running, self._space.ranges, self.study.directions, seed=self._seed, failed=failed
            )
            if len(self.study.directions) == 1 and len(finished) > 1:
                # Stored before the loss is known: `converged` reads what the model expected, in any process and after
                # a resume.
                attributes[IMPROVEMENT] = self._expected_improvement(point, finished)
        # Begin first, look for rivals after: the storage numbers the trials one after another, so of two workers at
        # one point exactly one sees an earlier rival and withdraws. Looking first would let both pass.
        trial = self._begin(point, attributes)
        # One read for all states: a rival that ends between two reads would be in neither.
        others = self._in(TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
        earlier = [other for other in others if other.number < trial.number and _counts(other)]
        # What had ended when the point was chosen is no rival: the proposal has taken it into account.
        known = {other.number for other in (*finished, *failed)}
        rivals = [other for other in earlier if other.number not in known]
        if len(earlier) >= limit or any(is_same(other.params, trial.params, self._space.ranges) for other in rivals):
            self._end(trial)
            return None
        return trial

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Finish a trial with its outcome; nothing happens if another worker has given it up in the meantime."""
        with self._ending(trial), suppress(UpdateFinishedTrialError):
            for domain, violation in outcome.violations.items():
                trial.set_constraint(domain, violation)
            for key, value in outcome.to_dict().items():
                trial.set_user_attr(key, value)
            self.study.tell(trial, list(outcome.values), skip_if_finished=True)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial whose merge has no finite loss; its point is not tried again."""
        with self._ending(trial), suppress(UpdateFinishedTrialError):
            # FAILED tells this trial from those that were lost or given up, which end in the same state.
            trial.set_user_attr(FAILED, reason)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def converged(self, tolerance: float, patience: int) -> bool:
        """Tell whether each of the last `patience` proposals had an expected improvement below `tolerance` nats."""
        expected = [trial.user_attrs.get(IMPROVEMENT) for trial in self.finished()][-patience:]
        # An initial point has no expected improvement; it breaks the row of proposals.
        return len(expected) == patience and all(each is not None and each < tolerance for each in expected)

    def posterior(self, trials: Sequence[FrozenTrial]) -> Posterior:
        """Fit a Gaussian process to the first objective of finished trials."""
        return Posterior.fit([self._unit(trial.params) for trial in trials], [trial.values[0] for trial in trials])

    def posterior_means(self, trials: Sequence[FrozenTrial]) -> list[float]:
        """Return the posterior mean of the first objective at the points of `trials`, nats per token."""
        if len(self.finished()) < 2:
            return [trial.values[0] for trial in trials]
        mean, _ = self.posterior(self.finished()).predict([self._unit(trial.params) for trial in trials])
        return [float(value) for value in mean]

    def note(self, key: str, value: Mapping[str, Any]) -> None:
        """Store something with the study."""
        self.study.set_user_attr(key, dict(value))

    def noted(self, key: str) -> dict[str, Any] | None:
        """Return what was stored with the study, or `None`."""
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
                **{key: value for key, value in trial.user_attrs.items() if key not in (WORKER, TOKEN, BEATS)},
                "seconds": trial.duration.total_seconds() if trial.duration else None,
            }

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False, states=states)
        # A trial without a worker is not of this package: a dashboard or a program of the user's has begun it.
        return [trial for trial in trials if WORKER in trial.user_attrs]

    def _begin(self, point: Point, attributes: dict[str, Any]) -> optuna.Trial:
        _BEGUN.add(attributes[TOKEN])  # first, so that no other thread of this process takes the trial for an orphan
        try:
            return begin_trial(
                self.study,
                self._storage,
                params=point,
                distributions=distributions(self._space.ranges),
                user_attrs=attributes,
            )
        except BaseException:
            _BEGUN.discard(attributes[TOKEN])
            raise

    @contextmanager
    def _ending(self, trial: optuna.Trial) -> Iterator[None]:
        """Disown a trial even if the storage cannot be written: then a later search of this process takes it up."""
        token = trial.user_attrs.get(TOKEN)
        try:
            yield
        finally:
            _BEGUN.discard(str(token))

    def _end(self, trial: optuna.Trial) -> None:
        """End a trial for which another worker was faster."""
        with self._ending(trial):
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _lose(self, trial: optuna.Trial) -> None:
        """End a trial whose point is to be tried again."""
        # LOST before the state: a finished trial takes no more attributes.
        with self._ending(trial), suppress(UpdateFinishedTrialError):  # another worker was faster
            trial.set_user_attr(LOST, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _lost(self) -> Point | None:
        """Return the first proposal that was lost with its worker and that no later trial has tried."""
        trials = self.study.get_trials(deepcopy=False)
        # A trial that withdrew at once, because another worker had its point, has tried nothing. One that was lost in
        # its turn speaks for itself.
        tried = [trial for trial in trials if _counts(trial) or LOST in trial.user_attrs]
        for trial in tried:
            is_proposal = LOST in trial.user_attrs and INITIAL not in trial.user_attrs
            later = (other for other in tried if other.number > trial.number)
            if is_proposal and all(other.params != trial.params for other in later):
                return trial.params
        return None

    def _unit(self, params: Mapping[str, float]) -> list[float]:
        return [side.unit(params[name]) for name, side in self._space.ranges.items()]

    def _expected_improvement(self, params: Mapping[str, float], finished: Sequence[FrozenTrial]) -> float:
        # While nothing keeps the limits every feasible point would be an improvement, so the worst loss is the mark.
        feasible = [trial.values[0] for trial in finished if is_feasible(trial)]
        incumbent = min(feasible, default=max(trial.values[0] for trial in finished))
        return float(self.posterior(finished).expected_improvement([self._unit(params)], incumbent)[0])

    def _agree(self, configuration: Mapping[str, str]) -> None:
        check_format_version(self.study.user_attrs, STUDY_VERSION, f"study {self.study.study_name!r}")
        known = self.noted(CONFIGURATION)
        if known is None:
            # The configuration before the version: a kill in between leaves what version 0.1.0 wrote, which can be
            # read.
            self.note(CONFIGURATION, configuration)
            self.study.set_user_attr(FORMAT_VERSION, STUDY_VERSION)
            return
        # A key that the study lacks was not stored by the version that made it.
        for key in sorted(known):
            if known[key] != configuration.get(key):
                raise ValueError(
                    f"The study {self.study.study_name!r} was made with another {key} ({known.get(key)}, now "
                    f"{configuration.get(key)}); choose another output, storage or study_name."
                )


def _counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial takes one of the places within the limit: not if it was lost or given up."""
    return trial.state is not TrialState.FAIL or FAILED in trial.user_attrs


def is_complete(trial: FrozenTrial) -> bool:
    """Tell whether a finished trial was scored on all documents."""
    return not trial.user_attrs.get(STOPPED, False)


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether a finished trial keeps all limits."""
    return all(violation <= 0 for violation in trial.user_attrs.get(VIOLATIONS, {}).values())
