"""Does the learning rate that is best at a small size stay the best at the larger ones? Measure it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup import MupConfig, RuleName
from hf_warmscale.tuning.ladder import Axis, ladder, refuse_one_size
from hf_warmscale.tuning.optimum import Curve, Optimum, find_optima
from hf_warmscale.tuning.proxy import ProxyTask, train_proxy
from hf_warmscale.tuning.runs import Point
from hf_warmscale.tuning.sweep import sweep
from hf_warmscale.tuning.transfer_figure import draw_transfer


@dataclass(frozen=True)
class TransferResult:
    """The learning-rate curves and best rates of one parametrization.

    Args:
        rule (`str`): `"mup"`, `"completep"` or `"standard"`.
        axis (`"width"` or `"depth"`): what grew.
        curves (`Mapping[int, Curve]`): the losses, by size.
        optima (`list[Optimum]`): the best rate of every size, the reference first.
    """

    rule: RuleName
    axis: Axis
    curves: Mapping[int, Curve]
    optima: list[Optimum]

    @property
    def drift(self) -> float:
        """How far the best rate moves from that of the first size, in octaves, at the size where it moves most."""
        return max((optimum.drift for optimum in self.optima), key=abs)

    def rows(self) -> list[dict[str, object]]:
        """Return one row of a table for each size."""
        return [
            {
                "rule": self.rule,
                self.axis: optimum.size,
                "log2 best lr": round(optimum.log2_lr, 2),
                "bootstrap": interval(optimum.low, optimum.high),
                "drift (octaves)": round(optimum.drift, 2),
                "bootstrap of the drift": interval(optimum.drift_low, optimum.drift_high),
                "lowest loss": round(optimum.loss, 4),
                "at edge": optimum.at_edge,
            }
            for optimum in self.optima
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        points = [
            {"size": size, "lr": lr, "seed": seed, "loss": loss if loss < float("inf") else None}
            for size, curve in self.curves.items()
            for lr, losses in sorted(curve.items())
            for seed, loss in sorted(losses.items())
        ]
        optima = [asdict(optimum) for optimum in self.optima]
        return {"rule": self.rule, "axis": self.axis, "drift": self.drift, "optima": optima, "points": points}


def interval(low: float, high: float) -> str:
    """Return an interval as text; none where one seed left nothing to resample."""
    return f"{low:.2f} .. {high:.2f}" if low < high else "-"


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

    Each run is stored under `output/<rule>/runs`; a sweep that was stopped goes on from there. `output` also gets
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
            study=describe_study(task, configs[sizes[0]], axis),
            jobs=jobs,
        )
        results.append(TransferResult(rule, axis, curves, find_optima(curves)))
    write_json(Path(output) / "transfer.json", [result.to_dict() for result in results])
    draw_transfer(Path(output) / "transfer.png", results)
    return results


def train_point(task: ProxyTask, configs: Mapping[int, MupConfig], point: Point) -> float:
    """Train one point of a sweep and return its validation loss."""
    return train_proxy(task, configs[point.size], lr=point.lr, seed=point.seed)


def describe_study(task: ProxyTask, config: MupConfig, axis: Axis) -> dict[str, Any]:
    """Return what the runs of a study depend on beside their size, rate and seed; not where the tokens lie."""
    shape = {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
    return {"task": task.identity(), "axis": axis, "model": shape}
