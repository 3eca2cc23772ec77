"""Pictures of a fit: the losses against compute with the frontier, the residuals, the rollout."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_warmscale.report import figure
from hf_warmscale.scaling.backtest import PREDICTORS
from hf_warmscale.scaling.costs import short
from hf_warmscale.scaling.frame import Frame
from hf_warmscale.scaling.laws import Array
from hf_warmscale.scaling.scaling_law import ScalingLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

COMPUTE, RESIDUALS, ROLLOUT = "compute.png", "residuals.png", "rollout.png"
COLOURS = "viridis"
STYLES = {"law": ("C0", "o"), "last_value": ("C7", "s"), "log_linear": ("C1", "^")}
MANY = 12
"""Sizes up to which each has a curve of its own."""


def draw_law(law: ScalingLaw, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the three pictures of a law into a folder, and return their paths; a law at fixed data has no compute.

    Raises:
        ValueError: if the law has no points.

    Example:

    ```python
    >>> [path.name for path in draw_law(fit_scaling_law("losses.csv"), "pictures")]
    ```
    """
    if law.frame is None:
        raise ValueError("The law has no points, so there is nothing to draw; fit one.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw_compute(law, law.frame, folder / COMPUTE)
    draw_residuals(law, law.frame, folder / RESIDUALS)
    paths = [folder / COMPUTE, folder / RESIDUALS]
    if law.backtest.steps:
        draw_rollout(law, folder / ROLLOUT)
        paths.append(folder / ROLLOUT)
    return paths


def draw_compute(law: ScalingLaw, frame: Frame, path: Path) -> None:
    """Draw the losses against the compute 6 N D, with the law of every size and the compute-optimal frontier."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    fixed = law.form == "power"
    scale = LogNorm(frame.N.min(), max(frame.N.max(), 1.01 * frame.N.min()))
    with figure(path) as drawing:
        axes = drawing.subplots()
        x = frame.N if fixed else 6 * frame.N * frame.D
        axes.scatter(x, frame.loss, c=frame.N, norm=scale, cmap=COLOURS, s=18, zorder=3)
        if fixed:
            sizes = np.geomspace(frame.N.min(), 4 * frame.N.max(), 100)
            axes.plot(sizes, law.predict(N=sizes), color="black", linewidth=1.2, label="law")
        else:
            _draw_sizes(axes, law, frame, scale)
            _draw_frontier(axes, law, frame)
            drawing.colorbar(ScalarMappable(scale, COLOURS), ax=axes, label="parameters N")
        axes.set(xscale="log", xlabel="parameters N" if fixed else "compute 6 N D, FLOPs", ylabel=f"loss, {law.unit}")
        axes.legend()


def draw_residuals(law: ScalingLaw, frame: Frame, path: Path) -> None:
    """Draw how far the measured losses lie from the law, against size and tokens."""
    off = 100 * np.expm1(law.residuals())
    panels: dict[str, Array] = {"parameters N": frame.N}
    if law.form != "power":
        panels["tokens D"] = frame.D
    with figure(path, size=(max(6.0, 4.2 * len(panels)), 3.6)) as drawing:
        row = drawing.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(row, panels.items(), strict=True):
            axes.axhline(0.0, color="black", linewidth=0.8)
            axes.scatter(values, off, s=14)
            axes.set(xscale="log", xlabel=name)
            _name_few_ticks(axes)
        row[0].set_ylabel("measured above law, %")


def draw_rollout(law: ScalingLaw, path: Path) -> None:
    """Draw the errors of the rollout: of the law, fitted to the smaller sizes, and of the two baselines."""
    steps = law.backtest.steps
    with figure(path) as drawing:
        axes = drawing.subplots()
        places = np.arange(len(steps))
        for name in PREDICTORS:
            colour, marker = STYLES[name]
            errors = [100 * getattr(step, name).mare for step in steps]
            axes.plot(places, errors, color=colour, marker=marker, label=name.replace("_", " "))
        labels = [f"{short(min(step.N))}\n({step.num_test})" for step in steps]
        axes.set_xticks(places, labels)
        axes.set(xlabel="predicted from all smaller sizes: parameters (points)", ylabel="mean relative error, %")
        axes.set_ylim(bottom=0.0)
        axes.legend()


def _draw_sizes(axes: "Axes", law: ScalingLaw, frame: Frame, scale: "LogNorm") -> None:
    """Draw the law of every size over its tokens; of some sizes, if there are many."""
    from matplotlib import colormaps

    sizes = np.unique(frame.N)
    if len(sizes) > MANY:
        sizes = sizes[np.linspace(0, len(sizes) - 1, MANY).astype(int)]
    for size in sizes:
        tokens = np.geomspace(0.8 * frame.D.min(), 1.25 * frame.D.max(), 60)
        colour = colormaps[COLOURS](scale(size))
        axes.plot(6 * size * tokens, law.predict(N=size, D=tokens), color=colour, linewidth=0.7, alpha=0.7)
    spent = 6 * frame.N * frame.D
    axes.set(xlim=(0.5 * spent.min(), 12 * spent.max()), ylim=(0.96 * frame.loss.min(), 1.03 * frame.loss.max()))


def _draw_frontier(axes: "Axes", law: ScalingLaw, frame: Frame) -> None:
    """Draw the lowest loss at each compute, and mark where it leaves the range of the points."""
    compute = np.geomspace((6 * frame.N * frame.D).min(), 10 * (6 * frame.N * frame.D).max(), 100)
    sizes = optimal_size(law, compute)
    losses = law.predict(N=sizes, D=compute / (6 * sizes))
    axes.plot(compute, losses, "k--", linewidth=1.6, zorder=4, label="compute-optimal frontier")


def _name_few_ticks(axes: "Axes") -> None:
    """Write 20M instead of a power, at most six times: over less than a decade the usual labels overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def optimal_size(law: ScalingLaw, compute: Array) -> Array:
    """Return the compute-optimal number of parameters at C = 6 N D (2203.15556, equation 4).

    Args:
        law (`ScalingLaw`): of N and D.
        compute (`[points]`): FLOPs of the training.

    Example:

    ```python
    >>> import numpy as np
    >>> small, large = optimal_size(published(), np.array([1e20, 1e22]))
    >>> bool(0 < small < large)
    True
    ```
    """
    values = law.parameters
    alpha, beta = values["alpha"], values["beta"]
    # With D = C / (6 N), dL/dN = 0 gives alpha A / N^alpha = beta B / D^beta.
    ratio = (alpha * values["A"]) / (beta * values["B"])
    size: Array = ratio ** (1 / (alpha + beta)) * (compute / 6) ** (beta / (alpha + beta))
    return size
