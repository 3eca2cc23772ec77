"""The loop of a search: ask, combine, score, tell, until nothing more is to be gained."""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from tqdm import tqdm

from hf_warmscale.evaluation import DocumentNLL, NonFiniteLossError
from hf_warmscale.merging.search.evaluator import Evaluator, Outcome, weighed
from hf_warmscale.merging.search.initial_points import Members, label_of, members_of, next_initial_point
from hf_warmscale.merging.search.ranks import Ranks
from hf_warmscale.merging.search.spaces import Point, Space
from hf_warmscale.merging.search.trials import FAILED, INITIAL, Trials, is_complete, is_feasible
from hf_warmscale.merging.weights import one_hot_weights

PATIENCE = 3
"""The search ends after this many consecutive proposals with nothing to gain; it gives up after this many
failed trials if none has finished."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class NextTrial:
    """The next trial, as the main process announces it to the others.

    Args:
        number (`int`): of the trial.
        point (`Point`): the point to score.
        incumbent (`tuple[int, Point]` or `None`): number and point of the best trial so far, if this one may be
            stopped early.
    """

    number: int
    point: Point
    incumbent: tuple[int, Point] | None


class SearchLoop:
    """The loop that every process of a search runs; the main one owns the trials.

    Args:
        ranks (`Ranks`): the processes.
        trials (`Trials` or `None`): `None` on all processes but the main one.
        space (`Space`): the space that is searched.
        evaluator (`Evaluator`): scores a merge.
        count (`int`): the number of checkpoints.
    """

    def __init__(self, ranks: Ranks, trials: Trials | None, space: Space, evaluator: Evaluator, count: int) -> None:
        self._ranks = ranks
        self._trials = trials
        self._space = space
        self._evaluator = evaluator
        self._count = count
        self._trial: optuna.Trial | None = None
        self._incumbents: dict[int, DocumentNLL] = {}
        self._failures: list[str] = []

    @property
    def trials(self) -> Trials:
        """The trials; only the main process may ask for them."""
        assert self._trials is not None
        return self._trials

    def run(self, n_trials: int, tolerance: float) -> None:
        """Run trials until all workers together have ended `n_trials`, or nothing more is to be gained.

        A merge without a finite loss fails its trial, and the search goes on.

        Raises:
            NonFiniteLossError: if no merge has a finite loss.
        """
        self._score_outsiders()
        with tqdm(total=n_trials, desc="searching", unit="trial", disable=not self._ranks.is_main) as bar:
            while (announced := self._ranks.from_main(lambda: self._next(n_trials, tolerance, bar))) is not None:
                self._run(announced)

    def singles(self) -> dict[int, dict[str, Any] | None]:
        """Return the outcome of each checkpoint alone that was scored, in the space or not; `None` if it failed."""
        # Only initial points: a proposal that happens to be a checkpoint alone may have been stopped early.
        known = {next(iter(members)): record for members, record in self._initial() if len(members) == 1}
        for index in self._outsiders():
            record = self._noted(index)
            if record is not None:
                known[index] = None if FAILED in record else record
        return known

    def _next(self, n_trials: int, tolerance: float, bar: "tqdm[Any]") -> NextTrial | None:
        """Ask for a trial; when there is none left, wait for those of other workers."""
        while True:
            self.trials.sweep()
            finished, running, failed = self.trials.finished(), self.trials.running(), self.trials.failed()
            ended = len(finished) + len(failed)
            bar.update(ended - bar.n)
            if not finished and len(failed) >= min(PATIENCE, n_trials):
                raise NonFiniteLossError(f"No merge has a finite loss: {failed[0].user_attrs[FAILED]}")
            if finished:
                self._warn_of_failures()
            # Failed trials count: each has cost an evaluation, and a space full of failures must come to an end.
            enough = ended >= n_trials or self.trials.converged(tolerance, PATIENCE)
            if not enough and ended + len(running) < n_trials:
                if (announced := self._ask(finished, running, n_trials)) is not None:
                    bar.set_postfix_str("", refresh=False)
                    return announced
                time.sleep(POLL_SECONDS)  # a rival has that point; asking again at once would flood the study
            elif not running:
                return None
            else:
                bar.set_postfix_str("waiting for other workers")
                time.sleep(POLL_SECONDS)

    def _ask(self, finished: list[FrozenTrial], running: list[FrozenTrial], limit: int) -> NextTrial | None:
        minimised = self._evaluator.minimised

        def loss(record: dict[str, Any] | None) -> float:
            return inf if record is None else weighed(record, minimised)

        initial = next_initial_point(
            self._space,
            self._count,
            singles={index: loss(record) for index, record in self.singles().items()},
            known={members: loss(record) for members, record in self._initial()},
            running=[members_of(trial.user_attrs[INITIAL]) for trial in running if INITIAL in trial.user_attrs],
        )
        self._trial = self.trials.ask(None if initial is None else (label_of(initial[0]), initial[1]), limit=limit)
        if self._trial is None:
            return None
        # Initial points are never stopped early: the greedy soup and the choice of the best single checkpoint need
        # their losses on all documents.
        incumbent = None if INITIAL in self._trial.user_attrs else self._incumbent(finished)
        return NextTrial(self._trial.number, self._trial.params, incumbent)

    def _incumbent(self, finished: list[FrozenTrial]) -> tuple[int, Point] | None:
        candidates = [trial for trial in finished if is_feasible(trial) and is_complete(trial)]
        # With several objectives no single trial is the one to beat.
        if len(self._evaluator.minimised) > 1 or not candidates:
            return None
        best = min(candidates, key=lambda trial: (trial.values[0], trial.number))
        return best.number, best.params

    def _run(self, announced: NextTrial) -> None:
        weights = self._space.weights(announced.point)
        outcome: Outcome | None = None
        with self.trials.busy(self._trial) if self._trial is not None else nullcontext():
            # Before the trial is combined: it may overwrite the live model with the incumbent.
            incumbent = self._scores_of(announced.incumbent) if announced.incumbent else None
            try:
                outcome = self._evaluator.trial(weights, incumbent)
            except NonFiniteLossError as error:
                reason = str(error)
        if outcome is None:
            self._fail(announced, reason)
            return
        # On every process: any later trial may be compared with this one, and all processes must then take the same
        # branch.
        if len(self._evaluator.minimised) == 1 and not outcome.stopped:
            self._incumbents[announced.number] = outcome.scores[self._evaluator.minimised[0]]
        if self._trial is not None:
            self.trials.tell(self._trial, outcome)

    def _fail(self, announced: NextTrial, reason: str) -> None:
        if self._trial is None:
            return
        self.trials.fail(self._trial, reason)
        weights = self._space.weights(announced.point)
        # Weights that differ between parameters are too many for a sentence; the point stands for them.
        shown = announced.point.items() if isinstance(weights, Mapping) else enumerate(weights, start=1)
        listed = ", ".join(f"{name}: {value:.4g}" for name, value in shown)
        self._failures.append(f"Trial {announced.number} (weights {listed}) failed; the search goes on. {reason}")

    def _warn_of_failures(self) -> None:
        """Warn of each failed trial once some other has a loss: if none has, one error says it all."""
        for failure in self._failures:
            warnings.warn(failure, stacklevel=5)
        self._failures.clear()

    def _scores_of(self, incumbent: tuple[int, Point]) -> DocumentNLL:
        """Return the incumbent's scores, computed again if another process, or this one before a kill, had them."""
        number, point = incumbent
        if number not in self._incumbents:
            (domain,) = self._evaluator.minimised
            self._incumbents[number] = self._evaluator.scores(self._space.weights(point), [domain])[domain]
        return self._incumbents[number]

    def _initial(self) -> Iterator[tuple[Members, dict[str, Any] | None]]:
        """Yield the averages whose trial has ended, each with its outcome, or with `None` if it failed."""
        for trial in self.trials.finished():
            if INITIAL in trial.user_attrs:
                yield members_of(trial.user_attrs[INITIAL]), trial.user_attrs
        for trial in self.trials.failed():
            if INITIAL in trial.user_attrs:
                yield members_of(trial.user_attrs[INITIAL]), None

    def _outsiders(self) -> list[int]:
        """Return the checkpoints that alone are not a point of the space."""
        return [
            index for index in range(self._count) if self._space.point(one_hot_weights(self._count, index)) is None
        ]

    def _score_outsiders(self) -> None:
        for index in self._outsiders():
            # The main process decides for all: whoever scored alone would wait for the others in a collective call.
            if self._ranks.from_main(partial(self._noted, index)) is not None:
                continue
            try:
                record = self._evaluator.trial(one_hot_weights(self._count, index), None).to_dict()
            except NonFiniteLossError as error:
                record = {FAILED: str(error)}
            if self._trials is not None:
                self.trials.note(_outsider(index), record)

    def _noted(self, index: int) -> dict[str, Any] | None:
        return self.trials.noted(_outsider(index))


def _outsider(index: int) -> str:
    return f"checkpoint {index} alone"
