"""Pictures of a search: its history, a slice for each parameter, the landscape along a line, the Pareto front.

History and slices are not those of `optuna.visualization.matplotlib`: these draw through pyplot, whose backend and
style belong to the user, and do not tell initial points, stopped trials and exceeded limits apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import FrozenTrial

from hf_warmscale.evaluation.scores import FloatArray
from hf_warmscale.merging.search.posterior import Posterior
from hf_warmscale.merging.search.result import MergeResult
from hf_warmscale.merging.search.spaces import Point, Space
from hf_warmscale.merging.search.trials import INITIAL, Trials, is_complete, is_feasible
from hf_warmscale.merging.weights import one_hot_weights
from hf_warmscale.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {
    "single checkpoint or average": ("tab:gray", "s"),
    "proposed by the search": ("tab:blue", "o"),
    "stopped early": ("tab:orange", "x"),
    "exceeds a limit": ("tab:red", "v"),
}
NATS = "nats per token (select split)"
SLICES = 6


def draw_all(folder: Path, trials: Trials, space: Space, result: MergeResult) -> None:
    """Draw the pictures of a search into an existing folder.

    Args:
        folder (`Path`): the result folder.
        trials (`Trials`): the finished search.
        space (`Space`): the space that was searched.
        result (`MergeResult`): its result.
    """
    finished = trials.finished()
    if result.front:
        objectives = list(result.front[0]["values"])
        draw_front(folder / "front.png", finished, [row["number"] for row in result.front], objectives)
        return
    draw_history(folder / "history.png", finished)
    draw_slices(folder / "slices.png", finished, space)
    last = space.point(one_hot_weights(len(result.inputs), len(result.inputs) - 1))
    if last is not None and len(finished) > 1:
        draw_landscape(
            folder / "landscape.png", finished, trials.posterior(finished), space, last=last, winner=result.winner
        )


def draw_history(path: Path, trials: Sequence[FrozenTrial]) -> None:
    """Draw the value of every trial and the best so far."""
    with figure(path) as drawing:
        axes = drawing.add_subplot()
        _scatter(axes, trials, [trial.number for trial in trials])
        best = np.minimum.accumulate([trial.values[0] if is_feasible(trial) else np.inf for trial in trials])
        axes.step([trial.number for trial in trials], best, where="post", color="black", lw=1, label="best so far")
        axes.set(xlabel="trial", ylabel=NATS, title="History of the search")
        axes.locator_params(axis="x", integer=True)
        axes.legend()


def draw_slices(path: Path, trials: Sequence[FrozenTrial], space: Space) -> None:
    """Draw the value of every trial against each parameter, or against the first `SLICES` of them."""
    names = list(space.ranges)[:SLICES]
    with figure(path, size=(3.2 * len(names) + 1.0, 3.6)) as drawing:
        panels = drawing.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            _scatter(axes, trials, [trial.params[name] for trial in trials])
            axes.set_xlabel(name)
            if space.ranges[name].log:
                ticks = np.geomspace(space.ranges[name].low, space.ranges[name].high, 5)
                axes.set_xscale("log")
                axes.minorticks_off()
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panels[0].set_ylabel(NATS)
        panels[0].legend(fontsize=8)


def draw_landscape(
    path: Path, trials: Sequence[FrozenTrial], posterior: Posterior, space: Space, last: Point, winner: Point
) -> None:
    """Draw the Gaussian process along a line: all of a box with one side, else through the last and the winner."""
    names = list(space.ranges)
    one = len(names) == 1
    side = space.ranges[names[0]]
    with figure(path) as drawing:
        axes = drawing.add_subplot()
        if one:
            at = np.linspace(0.0, 1.0, 200)
            points = at[:, None]
            x = side.low + at * (side.high - side.low)
            _scatter(axes, trials, [trial.params[names[0]] for trial in trials])
            axes.set(xlabel="lambda, the weight of the later checkpoint")
        else:
            x = np.linspace(0.0, 1.5, 200)
            start, end = _unit(space, last), _unit(space, winner)
            points = start + x[:, None] * (end - start)
            inside = ((points >= 0) & (points <= 1)).all(axis=1)
            x, points = x[inside], points[inside]
            axes.axvline(1.0, color="black", lw=0.8, ls=":")
            axes.set(xlabel="from the last checkpoint (0) to the winner (1) and beyond")
        mean, deviation = posterior.predict(points)
        axes.plot(x, mean, color="tab:blue", label="posterior mean")
        axes.fill_between(x, mean - 2 * deviation, mean + 2 * deviation, color="tab:blue", alpha=0.2, label="± 2 sd")
        axes.set(ylabel=NATS, title="Landscape")
        axes.legend()


def draw_front(path: Path, trials: Sequence[FrozenTrial], front: Sequence[int], objectives: Sequence[str]) -> None:
    """Draw the first two objectives of the trials, and the front of those that no other beats in both."""
    with figure(path) as drawing:
        axes = drawing.add_subplot()
        for kind, chosen in _by_kind(trials).items():
            colour, marker = KINDS[kind]
            pairs = np.array([trials[index].values[:2] for index in chosen])
            axes.scatter(pairs[:, 0], pairs[:, 1], c=colour, marker=marker, label=kind)
        best = sorted(tuple(trial.values[:2]) for trial in trials if trial.number in front)
        axes.step(*np.array(best).T, where="post", color="black", lw=1, label="front")
        axes.set(xlabel=f"{objectives[0]}, {NATS}", ylabel=f"{objectives[1]}, {NATS}", title="Pareto front")
        axes.legend()


def _scatter(axes: "Axes", trials: Sequence[FrozenTrial], x: Sequence[float]) -> None:
    for kind, chosen in _by_kind(trials).items():
        colour, marker = KINDS[kind]
        values = [trials[index].values[0] for index in chosen]
        axes.scatter([x[index] for index in chosen], values, c=colour, marker=marker, s=28, label=kind, zorder=3)


def _by_kind(trials: Sequence[FrozenTrial]) -> Mapping[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for index, trial in enumerate(trials):
        kinds.setdefault(_kind(trial), []).append(index)
    return kinds


def _kind(trial: FrozenTrial) -> str:
    if not is_feasible(trial):
        return "exceeds a limit"
    if not is_complete(trial):
        return "stopped early"
    return "single checkpoint or average" if INITIAL in trial.user_attrs else "proposed by the search"


def _unit(space: Space, point: Point) -> FloatArray:
    return np.array([side.unit(point[name]) for name, side in space.ranges.items()])
