"""Assertions for the tests of one's own models: do activations keep their size, does the learning rate transfer?"""

import inspect
import json
import os
from collections.abc import Sequence

from hf_warmscale.studies import content_hash
from hf_warmscale.studies.provenance import SHORT
from hf_warmscale.tuning.coordinate_result import TOLERANCE
from hf_warmscale.tuning.coordinates import Build, check_models
from hf_warmscale.tuning.ladder import Axis, refuse_one_size
from hf_warmscale.tuning.optimum import find_optima
from hf_warmscale.tuning.proxy import ProxyTask
from hf_warmscale.tuning.sweep import Train, sweep


def assert_coordinates(
    build: Build,
    task: ProxyTask,
    *,
    sizes: Sequence[int],
    axis: Axis = "width",
    steps: int = 10,
    seeds: int = 3,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that training moves every activation equally far at every size.

    Args:
        build (`Callable[[int, int], tuple]`): `build(size, seed)` returns a model and its optimizer.
        task (`ProxyTask`): the data.
        sizes (`Sequence[int]`): what to build.
        axis (`"width"` or `"depth"`): what the sizes are.
        steps (`int`): optimizer steps.
        seeds (`int`): runs of each size; the median counts.
        tolerance (`float`): the largest |slope| of log change against log size that passes.

    Raises:
        AssertionError: with the slope of every activation that fails.

    Example:

    ```python
    >>> def build(width, seed):
    ...     torch.manual_seed(seed)
    ...     model = MyModel(width)
    ...     return model, torch.optim.AdamW(my_groups(model, lr=1e-2))
    >>> assert_coordinates(build, ProxyTask("packed"), sizes=[64, 128, 256])
    ```
    """
    result = check_models(build, task, axis=axis, sizes=sizes, steps=steps, seeds=seeds, tolerance=tolerance)
    failing = ", ".join(f"{name} {slope:+.2f}" for name, slope in result.failures.items())
    assert result.passed, f"The change of these activations depends on the {axis} (slope in log-log): {failing}."


def assert_lr_transfers(
    train: Train,
    *,
    sizes: Sequence[int],
    lrs: Sequence[float],
    output: str | os.PathLike[str],
    seeds: int = 3,
    octaves: float = 0.5,
    jobs: int = 1,
) -> None:
    """Assert that the best learning rate of every size is within some octaves of the first size's.

    Args:
        train (`Callable[[Point], float]`): trains one point (size, lr, seed) and returns its loss in nats. Its source
            code, but not that of what it calls, is part of the study: `output` is refused after a change of it.
        sizes (`Sequence[int]`): widths or depths, the reference first.
        lrs (`Sequence[float]`): base learning rates, ascending.
        output (`str` or `PathLike`): a folder for the runs; what is stored there is not repeated.
        seeds (`int`): runs around each best rate.
        octaves (`float`): the largest drift that passes.
        jobs (`int`): trainings at a time.

    Raises:
        AssertionError: with the drift of every size, if one is too large or lies at an end of the grid.
        ValueError: if `output` holds the runs of another function or other sizes.

    Example:

    ```python
    >>> def train(point):
    ...     return my_loss(width=point.size, lr=point.lr, seed=point.seed)
    >>> lrs = [2.0**power for power in range(-10, -4)]
    >>> assert_lr_transfers(train, sizes=[64, 128, 256], lrs=lrs, output="transfer")
    ```
    """
    refuse_one_size(sizes)
    study = {"sizes": list(sizes), "train": _source(train)}
    curves = sweep(train, sizes=sizes, lrs=lrs, seeds=seeds, output=output, study=study, jobs=jobs)
    optima = find_optima(curves)
    drifts = ", ".join(f"{optimum.size}: {optimum.drift:+.2f}" for optimum in optima)
    assert not any(optimum.at_edge for optimum in optima), (
        f"A best rate is at an end of the grid ({drifts}); widen it."
    )
    assert all(abs(optimum.drift) <= octaves for optimum in optima), f"The best rate drifts, in octaves: {drifts}."


def _source(train: Train) -> str:
    """Return a hash of the code of a function, and of the plain values that a `partial` binds.

    An object is named by its type: its `repr` may hold an address, which is another one in every process. Where there
    is no code to read, as at a prompt, the name of the function stands for it.
    """
    function = getattr(train, "func", train)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        code = inspect.getsource(function)
    except (OSError, TypeError):
        code = name
    bound = [getattr(train, "args", ()), getattr(train, "keywords", {})]
    plain = json.dumps(bound, default=lambda each: type(each).__qualname__, sort_keys=True)
    return f"{name} {content_hash([code, plain])[:SHORT]}"
