"""Run a grid of trainings once: each stored as JSON, so that a sweep can be stopped and goes on where it was."""

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_warmscale.checkpoints import write_json
from hf_warmscale.tuning.optimum import Curve


@dataclass(frozen=True, order=True)
class Point:
    """One training of a sweep: the size (a width or a depth), the base learning rate, the seed."""

    size: int
    lr: float
    seed: int

    @property
    def file_name(self) -> str:
        """The name of the JSON that stores it."""
        return f"size-{self.size}_lr-{self.lr:.6g}_seed-{self.seed}.json"


Train = Callable[[Point], float]
"""Trains one point and returns its loss in nats; a module-level function, or a `partial` of one, if `jobs` > 1."""


def sweep(
    train: Train,
    *,
    sizes: Sequence[int],
    lrs: Sequence[float],
    seeds: int,
    output: str | os.PathLike[str],
    study: Mapping[str, Any],
    jobs: int = 1,
) -> Mapping[int, Curve]:
    """Train every size at every learning rate, and again with the other seeds around each size's best rate.

    Args:
        train (`Callable[[Point], float]`): trains one point and returns its loss; infinite or NaN if it diverged.
        sizes (`Sequence[int]`): widths or depths, the reference first.
        lrs (`Sequence[float]`): base learning rates, ascending.
        seeds (`int`): runs at the best rate and its two neighbours; the other rates get one.
        output (`str` or `PathLike`): a folder; the runs stored in it are not repeated.
        study (`Mapping`): what the trainings depend on, as plain values; a folder is for one study.
        jobs (`int`): trainings at a time, each in a process of its own with one thread.

    Returns:
        `Mapping[int, Curve]`: the losses, by size.

    Raises:
        ValueError: if `output` holds another study, or there are fewer than three rates.
    """
    if len(lrs) < 3 or sorted(set(lrs)) != list(lrs):
        raise ValueError(f"The learning rates {list(lrs)} must be at least three, different and ascending.")
    runs = _open_study(Path(output), study)
    curves = _read(runs, sizes, lrs)
    with _workers(jobs) as pool:
        while points := next_points(curves, sizes=sizes, lrs=lrs, seeds=seeds):
            _run(train, points, runs, pool)
            curves = _read(runs, sizes, lrs)
    return curves


def next_points(curves: Mapping[int, Curve], *, sizes: Sequence[int], lrs: Sequence[float], seeds: int) -> list[Point]:
    """Return what is left to train, the largest first: the whole grid once, then all seeds around each best rate."""
    grid = [Point(size, lr, 0) for size in sizes for lr in lrs]
    missing = [point for point in grid if 0 not in curves[point.size].get(point.lr, {})]
    if not missing:
        around = [
            Point(size, lr, seed) for size in sizes for lr in _around(curves[size], lrs) for seed in range(seeds)
        ]
        missing = [point for point in around if point.seed not in curves[point.size][point.lr]]
    return sorted(missing, key=lambda point: (-point.size, point.seed, point.lr))


def _around(curve: Curve, lrs: Sequence[float]) -> Sequence[float]:
    means = [sum(curve[lr].values()) / len(curve[lr]) for lr in lrs]
    best = means.index(min(means))
    return lrs[max(best - 1, 0) : best + 2]


def _open_study(output: Path, study: Mapping[str, Any]) -> Path:
    runs, identity = output / "runs", output / "study.json"
    runs.mkdir(parents=True, exist_ok=True)
    content = json.loads(json.dumps(study))
    if not identity.exists():
        write_json(identity, content)
    elif json.loads(identity.read_text()) != content:
        raise ValueError(f"The folder {output} holds the runs of another study (see study.json); name a new folder.")
    return runs


def _read(runs: Path, sizes: Iterable[int], lrs: Iterable[float]) -> Mapping[int, Curve]:
    wanted = set(lrs)
    curves: dict[int, dict[float, dict[int, float]]] = {size: {} for size in sizes}
    for path in sorted(runs.glob("*.json")):
        run = json.loads(path.read_text())
        if run["size"] in curves and run["lr"] in wanted:
            loss = math.inf if run["loss"] is None else run["loss"]
            curves[run["size"]].setdefault(run["lr"], {})[run["seed"]] = loss
    return curves


@contextmanager
def _workers(jobs: int) -> Iterator[Executor | None]:
    """Yield a pool of single-threaded processes; none, to train in this one, for a single job."""
    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _run(train: Train, points: Sequence[Point], runs: Path, pool: Executor | None) -> None:
    if pool is None:
        for point in tqdm(points, desc="runs"):
            _train_and_store(train, point, runs)
        return
    futures = [pool.submit(_train_and_store, train, point, runs) for point in points]
    for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
        future.result()


def _train_and_store(train: Train, point: Point, runs: Path) -> None:
    loss = train(point)
    write_json(runs / point.file_name, {**asdict(point), "loss": loss if math.isfinite(loss) else None})
