"""The loop of a search: ask, combine, score, tell, until enough is known."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from tqdm import tqdm

from hf_warmscale.evaluation import DocumentNLL
from hf_warmscale.merging.search.evaluator import Evaluator, weighed
from hf_warmscale.merging.search.initial_points import Members, members_of, next_start, start_label
from hf_warmscale.merging.search.ranks import Ranks
from hf_warmscale.merging.search.spaces import Point, Space
from hf_warmscale.merging.search.trials import START, Trials, is_complete, is_feasible
from hf_warmscale.merging.weights import vertex

PATIENCE = 3
"""Proposals in a row that promise nothing, after which the search ends."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """The next trial, as the main process tells it to the others.

    Args:
        number (`int`): of the trial.
        point (`Point`): to be scored.
        incumbent (`tuple[int, Point]` or `None`): number and point of the best trial so far, if this one may be
            stopped early.
    """

    number: int
    point: Point
    incumbent: tuple[int, Point] | None


class SearchLoop:
    """Every process of a search runs it; the main one keeps the trials.

    Args:
        ranks (`Ranks`): the processes.
        trials (`Trials` or `None`): on the main process.
        space (`Space`): what is searched.
        evaluator (`Evaluator`): scores a merge.
        count (`int`): number of checkpoints.
    """

    def __init__(self, ranks: Ranks, trials: Trials | None, space: Space, evaluator: Evaluator, count: int) -> None:
        self._ranks = ranks
        self._trials = trials
        self._space = space
        self._evaluator = evaluator
        self._count = count
        self._trial: optuna.Trial | None = None
        self._incumbents: dict[int, DocumentNLL] = {}

    @property
    def trials(self) -> Trials:
        """The trials; only the main process may ask for them."""
        assert self._trials is not None
        return self._trials

    def run(self, n_trials: int, tolerance: float) -> None:
        """Run trials until `n_trials` are finished, by all workers together, or nothing more is to be gained.

        Raises:
            ValueError: if the model or an objective gives NaN.
        """
        self._score_outsiders()
        with tqdm(total=n_trials, desc="searching", unit="trial", disable=not self._ranks.is_main) as bar:
            while (plan := self._ranks.from_main(lambda: self._next(n_trials, tolerance, bar))) is not None:
                self._run(plan)

    def singles(self) -> dict[int, dict[str, Any]]:
        """Return what is known of each checkpoint alone, in the space or not (on the main process)."""
        known = {next(iter(members)): record for members, record in self._starts() if len(members) == 1}
        outside = {index: self._noted(index) for index in self._outsiders()}
        return known | {index: record for index, record in outside.items() if record is not None}

    def _next(self, n_trials: int, tolerance: float, bar: "tqdm[Any]") -> Plan | None:
        """Ask for a trial; when there is none left, wait for those of other workers."""
        while True:
            self.trials.sweep()
            finished, running = self.trials.finished(), self.trials.running()
            bar.update(len(finished) - bar.n)
            enough = len(finished) >= n_trials or self.trials.converged(tolerance, PATIENCE)
            if not enough and len(finished) + len(running) < n_trials:
                if (plan := self._ask(finished, running, n_trials)) is not None:
                    bar.set_postfix_str("", refresh=False)
                    return plan
                time.sleep(POLL_SECONDS)  # a rival has that point; asking at once would fill the study with failures
            elif not running:
                return None
            else:
                bar.set_postfix_str("waiting for other workers")
                time.sleep(POLL_SECONDS)

    def _ask(self, finished: list[FrozenTrial], running: list[FrozenTrial], limit: int) -> Plan | None:
        objectives = self._evaluator.objectives
        start = next_start(
            self._space,
            self._count,
            singles={index: weighed(record, objectives) for index, record in self.singles().items()},
            known={members: weighed(record, objectives) for members, record in self._starts()},
            running=[members_of(trial.user_attrs[START]) for trial in running if START in trial.user_attrs],
        )
        self._trial = self.trials.ask(None if start is None else (start_label(start[0]), start[1]), limit=limit)
        if self._trial is None:
            return None
        incumbent = None if START in self._trial.user_attrs else self._incumbent(finished)
        return Plan(self._trial.number, self._trial.params, incumbent)

    def _incumbent(self, finished: list[FrozenTrial]) -> tuple[int, Point] | None:
        candidates = [trial for trial in finished if is_feasible(trial) and is_complete(trial)]
        if len(self._evaluator.objectives) > 1 or not candidates:
            return None
        best = min(candidates, key=lambda trial: (trial.values[0], trial.number))
        return best.number, best.params

    def _run(self, plan: Plan) -> None:
        with self.trials.busy(self._trial) if self._trial is not None else nullcontext():
            incumbent = self._scores_of(plan.incumbent) if plan.incumbent else None
            outcome = self._evaluator.trial(self._space.weights(plan.point), incumbent)
        if len(self._evaluator.objectives) == 1 and not outcome.stopped:
            self._incumbents[plan.number] = outcome.scores[self._evaluator.objectives[0]]
        if self._trial is not None:
            self.trials.tell(self._trial, outcome)

    def _scores_of(self, incumbent: tuple[int, Point]) -> DocumentNLL:
        """The incumbent's scores; made again if it was another process, or this one before a kill, that had them."""
        number, point = incumbent
        if number not in self._incumbents:
            (domain,) = self._evaluator.objectives
            self._incumbents[number] = self._evaluator.scores(self._space.weights(point), [domain])[domain]
        return self._incumbents[number]

    def _starts(self) -> Iterator[tuple[Members, dict[str, Any]]]:
        for trial in self.trials.finished():
            if START in trial.user_attrs:
                yield members_of(trial.user_attrs[START]), trial.user_attrs

    def _outsiders(self) -> list[int]:
        """The checkpoints that alone are no point of the space."""
        return [index for index in range(self._count) if self._space.point(vertex(self._count, index)) is None]

    def _score_outsiders(self) -> None:
        for index in self._outsiders():
            if self._ranks.from_main(partial(self._noted, index)) is not None:
                continue
            outcome = self._evaluator.trial(vertex(self._count, index), None)
            if self._trials is not None:
                self.trials.note(_outsider(index), outcome.to_dict())

    def _noted(self, index: int) -> dict[str, Any] | None:
        return self.trials.noted(_outsider(index))


def _outsider(index: int) -> str:
    return f"checkpoint {index} alone"
