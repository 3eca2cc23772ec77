"""Let several programs of one process take turns, one step at a time, and time each step.

The steps that are compared are then neighbours in time, and whatever else the machine does meets all of them.
"""

import time
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Any

from transformers import TrainerCallback

WARM_UP = 2
"""Steps of each program that are not counted."""

EndStep = Callable[[], None]


class Turns:
    """The processor time of every step of some programs.

    Args:
        count (`int`): of the programs.
        first (`int`): which of them begins.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self._seconds: list[list[float]] = [[] for _ in range(count)]
        self._turn, self._ended, self._changed = first, [False] * count, Condition()
        self._began = [0.0] * count

    @property
    def seconds(self) -> list[list[float]]:
        """The times of the steps after the first few, by program."""
        return [times[WARM_UP:] for times in self._seconds]

    def run(self, programs: Sequence[Callable[[EndStep], Any]]) -> None:
        """Run the programs to their ends; each gets a function to call at the end of every step."""
        failed: list[BaseException] = []
        threads = [Thread(target=self._run, args=(number, program, failed)) for number, program in enumerate(programs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def _run(self, number: int, program: Callable[[EndStep], Any], failed: list[BaseException]) -> None:
        self._wait(number)
        try:
            program(lambda: self._end_step(number))
        except BaseException as error:  # of another thread, so it is raised again by `run`
            failed.append(error)
        finally:
            self._ended[number] = True
            self._pass_on(number)

    def _end_step(self, number: int) -> None:
        self._seconds[number].append(time.thread_time() - self._began[number])
        self._pass_on(number)
        self._wait(number)

    def _pass_on(self, number: int) -> None:
        with self._changed:
            others = [(number + ahead) % len(self._ended) for ahead in range(1, len(self._ended) + 1)]
            self._turn = next((other for other in others if not self._ended[other]), number)
            self._changed.notify_all()

    def _wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number)
        self._began[number] = time.thread_time()


class Step(TrainerCallback):
    """Call a function when a step of a trainer has ended; fetching its rows and logging belong to a step."""

    def __init__(self, end_step: EndStep) -> None:
        self.end_step = end_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so."""
        self.end_step()
