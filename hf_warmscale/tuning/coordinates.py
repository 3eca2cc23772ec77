"""The coordinate check: does training move every activation equally far at every width, and at every depth?"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup import MupConfig, MupForCausalLM, RuleName, mup_param_groups
from hf_warmscale.tuning.activations import activation_changes
from hf_warmscale.tuning.coordinate_figure import draw_coordinates
from hf_warmscale.tuning.ladder import Axis, ladder, refuse_one_size
from hf_warmscale.tuning.proxy import ProxyTask
from hf_warmscale.tuning.runs import Point, open_study, read_runs, run_points, workers

TOLERANCE = 0.1
PROBE_SEED = 1_000_000
SMALLEST = 1e-30

Changes = Mapping[str, Sequence[float]]
"""For each activation, the RMS of its change since step 0 after every step."""


@dataclass(frozen=True)
class CoordinateResult:
    """How the change of every activation scales with size.

    Args:
        label (`str`): of the parametrization.
        axis (`"width"` or `"depth"`): what grew.
        tolerance (`float`): the largest |slope| that passes.
        changes (`Mapping[str, Mapping[int, list[float]]]`): activation -> size -> median over seeds, by step.
        slopes (`Mapping[str, float]`): d log(last change) / d log(size), for each activation that moves.
    """

    label: str
    axis: Axis
    tolerance: float
    changes: Mapping[str, Mapping[int, list[float]]]
    slopes: Mapping[str, float]

    @property
    def failures(self) -> dict[str, float]:
        """The activations whose slope is out of tolerance, the worst first."""
        failing = {name: slope for name, slope in self.slopes.items() if not abs(slope) <= self.tolerance}
        return dict(sorted(failing.items(), key=lambda item: -abs(item[1])))

    @property
    def passed(self) -> bool:
        """Every activation moves as far at every size."""
        return bool(self.slopes) and not self.failures

    def rows(self) -> list[dict[str, object]]:
        """Return one row of a table for each activation."""
        return [
            {"rule": self.label, "activation": name, "slope": round(slope, 3), "ok": abs(slope) <= self.tolerance}
            for name, slope in self.slopes.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "passed": self.passed}


def fit_slopes(
    runs: Mapping[int, Sequence[Changes]], *, label: str, axis: Axis, tolerance: float = TOLERANCE
) -> CoordinateResult:
    """Fit d log(change) / d log(size) of every activation that all sizes have, on medians over seeds.

    What never changes (the rotary angles) has no slope and is left out.

    Args:
        runs (`Mapping[int, Sequence[Changes]]`): for each size, what every seed gave.
        label (`str`): of the parametrization.
        axis (`"width"` or `"depth"`): what the sizes are.
        tolerance (`float`): the largest |slope| that passes.

    Raises:
        ValueError: if there are fewer than two sizes.
    """
    refuse_one_size(list(runs))
    names = set.intersection(*(set(changes) for seeds in runs.values() for changes in seeds))
    order = [name for name in next(iter(runs.values()))[0] if name in names]
    medians = {
        name: {size: np.median([run[name] for run in seeds], axis=0).tolist() for size, seeds in runs.items()}
        for name in order
    }
    slopes = {
        name: _slope({size: steps[-1] for size, steps in by_size.items()})
        for name, by_size in medians.items()
        if any(steps[-1] != 0 for steps in by_size.values())
    }
    return CoordinateResult(label, axis, tolerance, medians, slopes)


def coordinate_check(
    config: MupConfig,
    task: ProxyTask,
    *,
    axis: Axis,
    sizes: Sequence[int],
    lr: float,
    output: str | os.PathLike[str],
    rules: Sequence[RuleName] = ("completep", "standard"),
    steps: int = 10,
    seeds: int = 3,
    tolerance: float = TOLERANCE,
    jobs: int = 1,
) -> list[CoordinateResult]:
    """Train every size for a few steps at a constant rate and fit how the change of each activation scales.

    Each run is stored under `output/<rule>/runs`; a check that was stopped goes on from there. `output` also gets
    `coordinates.json` and `coordinates.png`. Zero-init query and readout, and a rate near the best one, make the check
    sharp (arXiv:2203.03466, App. D).

    Args:
        config (`MupConfig`): the model, at any size, with its base shape.
        task (`ProxyTask`): the data and the optimizer.
        axis (`"width"` or `"depth"`): what grows.
        sizes (`Sequence[int]`): hidden sizes or numbers of layers.
        lr (`float`): the base learning rate, without warmup or decay.
        output (`str` or `PathLike`): a folder.
        rules (`Sequence[str]`): the parametrizations to check.
        steps (`int`): optimizer steps.
        seeds (`int`): runs of each size; the median counts.
        tolerance (`float`): the largest |slope| that passes.
        jobs (`int`): trainings at a time, each in a process of its own with one thread.

    Returns:
        `list[CoordinateResult]`: one for each rule.

    Raises:
        ValueError: if the sizes do not fit, a run diverges, or `output` holds another study.
    """
    refuse_one_size(sizes)
    results = []
    for rule in rules:
        configs = ladder(config.with_mup(rule=rule), axis, sizes)
        shape = {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
        study = {"task": task.identity(), "axis": axis, "steps": steps, "rule": rule, "model": shape}
        runs = open_study(Path(output) / rule, study)
        points = [Point(size, lr, seed) for size in sizes for seed in range(seeds)]
        with workers(jobs) as pool:
            done = {(run["size"], run["lr"], run["seed"]) for run in read_runs(runs)}
            missing = [point for point in points if astuple(point) not in done]
            run_points(partial(measure_point, task, configs, axis, steps), missing, runs, pool)
        stored = {(run["size"], run["lr"], run["seed"]): run["changes"] for run in read_runs(runs)}
        by_size = {size: [stored[size, lr, seed] for seed in range(seeds)] for size in sizes}
        results.append(fit_slopes(by_size, label=rule, axis=axis, tolerance=tolerance))
    write_json(Path(output) / "coordinates.json", [result.to_dict() for result in results])
    draw_coordinates(Path(output) / "coordinates.png", results)
    return results


def measure_point(
    task: ProxyTask, configs: Mapping[int, MupConfig], axis: Axis, steps: int, point: Point
) -> dict[str, dict[str, list[float]]]:
    """Train one model for a few steps and return how far each activation moved."""
    torch.manual_seed(point.seed)
    model = MupForCausalLM(configs[point.size])
    groups = mup_param_groups(
        model, lr=point.lr, weight_decay=task.weight_decay, eps=task.eps, weight_decay_rule=task.weight_decay_rule
    )
    return {"changes": measure(model, torch.optim.AdamW(groups, betas=task.betas), task, axis, steps, point.seed)}


def measure(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, task: ProxyTask, axis: Axis, steps: int, seed: int
) -> dict[str, list[float]]:
    """Train a model for a few steps of a task and return, for each activation, its change after every step."""
    (probe,) = islice(task.batches("train", PROBE_SEED), 1)
    batches = list(islice(task.batches("train", seed), steps))
    changes = activation_changes(model, optimizer, batches, probe, axis=axis)
    if not all(math.isfinite(value) for step in changes for value in step.values()):
        raise ValueError(
            f"A model of {model.num_parameters()} parameters diverged within {steps} steps; lower the rate."
        )
    return {name: [step[name] for step in changes] for name in changes[0]}


def _slope(values: Mapping[int, float]) -> float:
    slope, _ = np.polyfit(np.log(list(values)), np.log([max(value, SMALLEST) for value in values.values()]), 1)
    return float(slope)


Build = Callable[[int, int], tuple[PreTrainedModel, torch.optim.Optimizer]]
"""Makes the model of a size from a seed, with its optimizer."""


def check_models(
    build: Build,
    task: ProxyTask,
    *,
    axis: Axis,
    sizes: Sequence[int],
    steps: int = 10,
    seeds: int = 3,
    tolerance: float = TOLERANCE,
) -> CoordinateResult:
    """Run the coordinate check on models of one's own, in this process.

    Args:
        build (`Callable[[int, int], tuple]`): `build(size, seed)` returns a model and its optimizer.
        task (`ProxyTask`): the data.
        axis (`"width"` or `"depth"`): what the sizes are.
        sizes (`Sequence[int]`): what to build.
        steps (`int`): optimizer steps.
        seeds (`int`): runs of each size; the median counts.
        tolerance (`float`): the largest |slope| that passes.
    """
    runs = {size: [measure(*build(size, seed), task, axis, steps, seed) for seed in range(seeds)] for size in sizes}
    return fit_slopes(runs, label="own", axis=axis, tolerance=tolerance)
