"""Sweep the learning rate at every size: a grid with one seed, then all seeds around each best rate."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_warmscale.studies import PlannedRun, open_study, read_runs, run_all, workers
from hf_warmscale.tuning.optimum import Curve
from hf_warmscale.tuning.point import RUNS, Point

Train = Callable[[Point], float]
"""Trains one point and returns its loss in nats; a module-level function, or a `partial` of one, with several jobs."""


def sweep(
    train: Train,
    *,
    sizes: Sequence[int],
    lrs: Sequence[float],
    seeds: int,
    output: str | os.PathLike[str],
    study: Mapping[str, Any],
    tokens: str | None = None,
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
        tokens (`str`, *optional*): hash of the tokens they see.
        jobs (`int`): trainings at a time, each in a process of its own with one thread.

    Returns:
        `Mapping[int, Curve]`: the losses, by size.

    Raises:
        ValueError: if `output` holds another study, or there are fewer than three rates.

    Example:

    ```python
    >>> from math import log2
    >>> def train(point):
    ...     return 3.0 + (log2(point.lr) + 7) ** 2
    >>> curves = sweep(train, sizes=[64], lrs=[2**-8, 2**-7, 2**-6], seeds=2, output="sweep", study={"steps": 100})
    >>> sorted(curves[64][2**-7])
    [0, 1]
    ```
    """
    refuse_rates(lrs)
    if len(lrs) < 3 or sorted(set(lrs)) != list(lrs):
        raise ValueError(f"The learning rates {list(lrs)} must be at least three, different and ascending.")
    opened, runs = open_study(output, study, tokens=tokens), Path(output) / RUNS
    curves = read_curves(runs, sizes, lrs)
    with workers(jobs) as pool:
        while points := next_points(curves, sizes=sizes, lrs=lrs, seeds=seeds):
            run_all(opened, [*map(Point.planned, points)], partial(_loss, train), pool=pool)
            curves = read_curves(runs, sizes, lrs)
    return curves


def refuse_rates(lrs: Iterable[float]) -> None:
    """Refuse learning rates that are not positive numbers, before a study is begun.

    Raises:
        ValueError: with the first of them.
    """
    for lr in lrs:
        if not 0 < lr < math.inf:
            raise ValueError(f"The learning rate is {lr}; give a positive number, the rate at the base shape.")


def next_points(curves: Mapping[int, Curve], *, sizes: Sequence[int], lrs: Sequence[float], seeds: int) -> list[Point]:
    """Return what is left to train: the whole grid once, then all seeds around each best rate; the cheapest first."""
    grid = [Point(size, lr, 0) for size in sizes for lr in lrs]
    missing = [point for point in grid if 0 not in curves[point.size].get(point.lr, {})]
    if not missing:
        # The best rate may move as seeds are added: rates with one seed compete with means over several. `sweep` asks
        # again until nothing is missing; the grid is finite, so that ends.
        around = [
            Point(size, lr, seed) for size in sizes for lr in _around(curves[size], lrs) for seed in range(seeds)
        ]
        missing = [point for point in around if point.seed not in curves[point.size][point.lr]]
    # Size is the price of a run, so it comes first.
    return sorted(missing, key=lambda point: (point.size, point.seed, point.lr))


def _around(curve: Curve, lrs: Sequence[float]) -> Sequence[float]:
    means = [sum(curve[lr].values()) / len(curve[lr]) for lr in lrs]
    best = means.index(min(means))
    return lrs[max(best - 1, 0) : best + 2]


def _loss(train: Train, run: PlannedRun) -> dict[str, float]:
    return {"loss": train(Point.of(run))}


def read_curves(runs: Path, sizes: Iterable[int], lrs: Iterable[float]) -> Mapping[int, Curve]:
    """Return the stored losses of some sizes and rates, by size; infinite where a run diverged."""
    wanted = set(lrs)
    curves: dict[int, dict[float, dict[int, float]]] = {size: {} for size in sizes}
    for run in read_runs(runs):
        if run["size"] in curves and run["lr"] in wanted:
            # JSON has no infinity; a study stores it as null.
            loss = math.inf if run["loss"] is None else run["loss"]
            curves[run["size"]].setdefault(run["lr"], {})[run["seed"]] = loss
    return curves
