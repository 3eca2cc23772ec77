"""Does the learning rate that is best at a small size stay the best at the larger ones? Measure it."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup import MupConfig
from hf_warmscale.options import RuleName
from hf_warmscale.tuning.ladder import Axis, describe_study, ladder, refuse_one_size
from hf_warmscale.tuning.optimum import find_optima
from hf_warmscale.tuning.point import Point
from hf_warmscale.tuning.proxy import ProxyTask, train_proxy
from hf_warmscale.tuning.sweep import sweep
from hf_warmscale.tuning.transfer_figure import draw_transfer
from hf_warmscale.tuning.transfer_result import TransferResult


def lr_transfer(
    config: MupConfig,
    task: ProxyTask,
    *,
    axis: Axis,
    sizes: Sequence[int],
    lrs: Sequence[float],
    output: str | os.PathLike[str],
    rules: Sequence[RuleName] = ("completep", "standard"),
    seeds: int = 3,
    jobs: int = 1,
) -> list[TransferResult]:
    """Sweep the learning rate at every width (or depth) and fit how far the best one drifts.

    Each run is stored under `output/<rule>/runs`; an interrupted sweep continues from there. `output` also gets
    `transfer.json` and `transfer.png`.

    Args:
        config (`MupConfig`): the model, at any size, with its base shape.
        task (`ProxyTask`): the data and the optimizer, the same for every run.
        axis (`"width"` or `"depth"`): what grows.
        sizes (`Sequence[int]`): hidden sizes or numbers of layers, the reference first.
        lrs (`Sequence[float]`): base learning rates, ascending.
        output (`str` or `PathLike`): a folder.
        rules (`Sequence[str]`): the parametrizations to compare.
        seeds (`int`): runs around each best rate; the other rates get one.
        jobs (`int`): trainings at a time, each in a process of its own with one thread.

    Returns:
        `list[TransferResult]`: one for each rule.

    Raises:
        ValueError: if the sizes or rates do not fit, or `output` holds another study.

    Example:

    ```python
    >>> lrs = [2.0**power for power in range(-10, -4)]
    >>> results = lr_transfer(config, ProxyTask("packed"), axis="width", sizes=[64, 128, 256], lrs=lrs, output="lrs")
    >>> [optimum.drift for optimum in results[0].optima]
    ```
    """
    refuse_one_size(sizes)
    results = []
    for rule in rules:
        configs = ladder(config.with_mup(rule=rule), axis, sizes)
        curves = sweep(
            partial(train_point, task, configs),
            sizes=sizes,
            lrs=lrs,
            seeds=seeds,
            output=Path(output) / rule,
            study=describe_study(task.settings(), configs[sizes[0]], axis),
            # The rows themselves, not their path: the same corpus may lie elsewhere, and another one at the same
            # place.
            tokens=task.tokens_hash(),
            jobs=jobs,
        )
        results.append(TransferResult(rule, axis, curves, find_optima(curves)))
    write_json(Path(output) / "transfer.json", [result.to_dict() for result in results])
    draw_transfer(Path(output) / "transfer.png", results)
    return results


def train_point(task: ProxyTask, configs: Mapping[int, MupConfig], point: Point) -> float:
    """Train one point of a sweep and return its validation loss."""
    return train_proxy(task, configs[point.size], lr=point.lr, seed=point.seed)
