"""The coordinate check: does training move every activation equally far at every width, and at every depth?"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup import MupConfig, MupForCausalLM, mup_param_groups
from hf_warmscale.options import RuleName
from hf_warmscale.studies import PlannedRun, open_study, run_all, workers
from hf_warmscale.tuning.activations import activation_changes
from hf_warmscale.tuning.coordinate_figure import draw_coordinates
from hf_warmscale.tuning.coordinate_result import TOLERANCE, CoordinateResult, fit_slopes
from hf_warmscale.tuning.ladder import Axis, describe_study, ladder, refuse_one_size
from hf_warmscale.tuning.point import Point
from hf_warmscale.tuning.proxy import ProxyTask
from hf_warmscale.tuning.sweep import refuse_rates

PROBE_SEED = 1_000_000


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

    Each run is stored under `output/<rule>/runs`; an interrupted check continues from there. `output` also gets
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

    Example:

    ```python
    >>> task = ProxyTask("packed")
    >>> results = coordinate_check(config, task, axis="width", sizes=[64, 128, 256], lr=2**-7, output="check")
    >>> {result.label: result.passed for result in results}
    {'completep': True, 'standard': False}
    ```
    """
    refuse_one_size(sizes)
    refuse_rates([lr])
    results = []
    for rule in rules:
        configs = ladder(config.with_mup(rule=rule), axis, sizes)
        # The learning rate and the sizes are in the names of the runs, so a study can be extended by more of them.
        described = {**describe_study(task.settings(), config, axis), "steps": steps, "rule": rule}
        study = open_study(Path(output) / rule, described, tokens=task.tokens_hash())
        points = [Point(size, lr, seed) for size in sizes for seed in range(seeds)]
        with workers(jobs) as pool:
            run_all(study, [*map(Point.planned, points)], partial(measure_run, task, configs, axis, steps), pool=pool)
        changes = {point: study.result(point.run_name)["changes"] for point in points}
        by_size = {size: [changes[Point(size, lr, seed)] for seed in range(seeds)] for size in sizes}
        results.append(fit_slopes(by_size, label=rule, axis=axis, tolerance=tolerance))
    write_json(Path(output) / "coordinates.json", [result.to_dict() for result in results])
    draw_coordinates(Path(output) / "coordinates.png", results)
    return results


def measure_run(
    task: ProxyTask, configs: Mapping[int, MupConfig], axis: Axis, steps: int, run: PlannedRun
) -> dict[str, dict[str, list[float]]]:
    """Train one model for a few steps and return how far each activation moved."""
    point = Point.of(run)
    torch.manual_seed(point.seed)
    model = MupForCausalLM(configs[point.size])
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        torch.nn.Module.to(model, accelerator)
    groups = mup_param_groups(
        model, lr=point.lr, weight_decay=task.weight_decay, eps=task.eps, weight_decay_rule=task.weight_decay_rule
    )
    return {"changes": measure(model, torch.optim.AdamW(groups, betas=task.betas), task, axis, steps, point.seed)}


def measure(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, task: ProxyTask, axis: Axis, steps: int, seed: int
) -> dict[str, list[float]]:
    """Train a model for a few steps of a task and return, for each activation, its change after every step."""
    # One probe for all seeds and sizes; its seed is far from those of the runs, whose batches it should not be.
    (probe,) = islice(task.batches(PROBE_SEED), 1)
    batches = list(islice(task.batches(seed), steps))
    changes = activation_changes(model, optimizer, batches, probe, axis=axis)
    if not all(math.isfinite(value) for step in changes for value in step.values()):
        raise ValueError(
            f"A model of {model.num_parameters()} parameters diverged within {steps} steps; lower the rate."
        )
    return {name: [step[name] for step in changes] for name in changes[0]}


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
    """Run the coordinate check on your own models, in this process.

    Args:
        build (`Callable[[int, int], tuple]`): `build(size, seed)` returns a model and its optimizer.
        task (`ProxyTask`): the data.
        axis (`"width"` or `"depth"`): what the sizes are.
        sizes (`Sequence[int]`): what to build.
        steps (`int`): optimizer steps.
        seeds (`int`): runs of each size; the median counts.
        tolerance (`float`): the largest |slope| that passes.

    Example:

    ```python
    >>> def build(width, seed):
    ...     torch.manual_seed(seed)
    ...     model = MyModel(width)
    ...     return model, torch.optim.AdamW(my_groups(model, lr=1e-2))
    >>> check_models(build, ProxyTask("packed"), axis="width", sizes=[64, 128, 256]).slopes
    ```
    """
    runs = {size: [measure(*build(size, seed), task, axis, steps, seed) for seed in range(seeds)] for size in sizes}
    return fit_slopes(runs, label="own", axis=axis, tolerance=tolerance)
