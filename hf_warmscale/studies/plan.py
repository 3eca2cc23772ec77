"""Make each of a list of runs once, in this process or in several, after the runs whose results it needs."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

from tqdm.auto import tqdm

from hf_warmscale.studies.study import Study

PATIENCE = 0.5
"""Seconds between two looks at runs that other processes make."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Args:
        name (`str`): of its JSON; it may have parts, as in `base/seed-0`.
        content (`Mapping[str, Any]`): what the run is, as plain values: its size, rate, seed.
        after (`tuple[str, ...]`): the runs whose results it needs.

    Example:

    ```python
    >>> PlannedRun("large/seed-0", {"width": 64, "seed": 0}, after=("small/seed-0",)).name
    'large/seed-0'
    ```
    """

    name: str
    content: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()


Work = Callable[[PlannedRun], Mapping[str, Any]]
"""Makes one run and returns what to store; a module-level function, or a `partial` of one, with several jobs."""


def run_all(study: Study, plan: Sequence[PlannedRun], work: Work, *, pool: "Workers | None" = None) -> None:
    """Make every run of a plan that is not stored, in the order of the plan.

    The same command may be started in several shells, and by several workers: a run that another process makes is left
    to it. A run that was interrupted begins again, unless `work` resumes it.

    Args:
        study (`Study`): where the results go.
        plan (`Sequence[PlannedRun]`): the runs.
        work (`Callable`): makes one.
        pool (`Workers`, *optional*): processes to share the runs among.

    Raises:
        ValueError: if a run waits for one that is neither stored nor planned, or two have one name.

    Example:

    ```python
    >>> study = open_study("seeds", {"steps": 100})
    >>> run_all(study, [PlannedRun("seed-0", {"seed": 0})], lambda run: {"loss": 3.5 + run.content["seed"]})
    ```
    """
    _refuse(study, plan)
    if pool is None:
        for _ in tqdm(_made(study, plan, work), total=_missing(study, plan), desc="runs", disable=not plan):
            pass
        return
    # Each worker goes through the whole plan: the locks of the runs divide it.
    working = {pool.executor.submit(_make_all, study, plan, work) for _ in range(pool.jobs)}
    try:
        total = _missing(study, plan)
        with tqdm(total=total, desc="runs") as bar:
            while working:
                done, working = wait(working, timeout=PATIENCE)
                bar.update(total - _missing(study, plan) - bar.n)
                for future in done:
                    # Raises what the worker raised.
                    future.result()
    except BaseException:
        pool.stop.set()  # otherwise the other workers would make the whole rest of the plan first
        raise


def _make_all(study: Study, plan: Sequence[PlannedRun], work: Work) -> None:
    for _ in _made(study, plan, work):
        if _stop is not None and _stop.is_set():
            return


def _made(study: Study, plan: Sequence[PlannedRun], work: Work) -> Iterator[str]:
    """Make what is missing and yield the name of each run that was made here; wait for what others make."""
    while pending := [run for run in plan if not study.has(run.name)]:
        for run in pending:
            if all(map(study.has, run.after)) and study.attempt(run.name, lambda run=run: work(run), run.content):  # type: ignore[misc]
                yield run.name
                break  # what comes first in the plan may be ready now
        else:
            time.sleep(PATIENCE)


def _missing(study: Study, plan: Sequence[PlannedRun]) -> int:
    return sum(not study.has(run.name) for run in plan)


def _refuse(study: Study, plan: Sequence[PlannedRun]) -> None:
    names = [run.name for run in plan]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two runs of the study are called {name!r}; give each a name of its own.")
    # A run can start once all before it are stored; what is left when no run can start waits for ever.
    # A stored run that is not in this plan counts too: the plans of a study may build on one another.
    ready = {name for run in plan for name in (run.name, *run.after) if study.has(name)}
    waiting = [run for run in plan if run.name not in ready]
    while startable := [run for run in waiting if ready.issuperset(run.after)]:
        ready |= {run.name for run in startable}
        waiting = [run for run in waiting if run.name not in ready]
    for run in waiting:
        missing = next(name for name in run.after if name not in ready)
        raise ValueError(
            f"The run {run.name!r} waits for {missing!r}, which can never start; add it to the plan, or run it first."
        )


@dataclass(frozen=True)
class Workers:
    """Processes that make runs.

    Args:
        executor (`Executor`): the pool.
        jobs (`int`): its processes.
        stop (`Event`): set to keep them from beginning another run.
    """

    executor: Executor
    jobs: int
    stop: Event


@contextmanager
def workers(jobs: int) -> Iterator[Workers | None]:
    """Yield a pool of single-threaded processes, which end when this one is killed; none for a single job.

    Args:
        jobs (`int`): processes.

    Example:

    ```python
    >>> with workers(1) as pool:  # of 2 jobs on, a pool for run_all
    ...     pool is None
    True
    ```
    """
    if jobs == 1:
        yield None
        return
    # A forked process would inherit the threads and locks of torch, and an accelerator's context that cannot be used
    # there.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(stop,))
    try:
        yield Workers(pool, jobs, stop)
    finally:
        pool.shutdown(cancel_futures=True)


_stop: Event | None = None
"""In a worker: the `stop` of its pool."""


def _start_worker(stop: Event) -> None:
    import torch

    global _stop
    _stop = stop
    # One thread per worker: otherwise each takes all cores. The number of threads also decides the last digits, see
    # `machine_kind`.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker once its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # From a thread `sys.exit` would end the thread only.
        os._exit(1)
