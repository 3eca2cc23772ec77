"""Run each training once: stored as JSON, so that a study can be stopped and goes on where it was."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_warmscale.checkpoints import write_json


@dataclass(frozen=True, order=True)
class Point:
    """One training of a study: the size (a width or a depth), the base learning rate, the seed."""

    size: int
    lr: float
    seed: int

    @property
    def file_name(self) -> str:
        """The name of the JSON that stores it."""
        return f"size-{self.size}_lr-{float(self.lr)!r}_seed-{self.seed}.json"


Work = Callable[[Point], Mapping[str, Any]]
"""Trains one point and returns what to store; a module-level function, or a `partial` of one, with several jobs."""


def open_study(output: Path, study: Mapping[str, Any]) -> Path:
    """Return the folder of the runs of a study, made if need be.

    Raises:
        ValueError: if `output` holds the runs of another study.
    """
    runs, identity = output / "runs", output / "study.json"
    runs.mkdir(parents=True, exist_ok=True)
    content = json.loads(json.dumps(study))
    if not identity.exists():
        write_json(identity, content)
    elif json.loads(identity.read_text()) != content:
        raise ValueError(f"The folder {output} holds the runs of another study (see study.json); name a new folder.")
    return runs


def read_runs(runs: Path) -> list[dict[str, Any]]:
    """Return the stored runs, in the order of their file names."""
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))]


@contextmanager
def workers(jobs: int) -> Iterator[Executor | None]:
    """Yield a pool of single-threaded processes, which end when this one is killed; none for a single job."""
    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker waits for work for ever once its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_points(work: Work, points: Sequence[Point], runs: Path, pool: Executor | None) -> None:
    """Train the points and store each as soon as it is done."""
    if pool is None:
        for point in tqdm(points, desc="runs"):
            _work_and_store(work, point, runs)
        return
    futures = [pool.submit(_work_and_store, work, point, runs) for point in points]
    for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
        future.result()


def _work_and_store(work: Work, point: Point, runs: Path) -> None:
    write_json(runs / point.file_name, {**asdict(point), **work(point)})
