"""The picture of a coordinate check: the changes against size, and their slopes against the tolerance."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_warmscale.report import figure
from hf_warmscale.tuning.coordinate_result import CoordinateResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_coordinates(path: str | os.PathLike[str], results: Sequence[CoordinateResult]) -> None:
    """Draw two panels for each parametrization: every activation's change against size, and its fitted slope."""
    names = max(len(result.slopes) for result in results)
    height = max(4.0, 0.19 * names + 1.2)
    with figure(path, size=(10.5, height * len(results))) as drawing:
        panels = drawing.subplots(len(results), 2, squeeze=False, width_ratios=[1.0, 1.1])
        for (lines, slopes), result in zip(panels, results, strict=True):
            _draw_lines(lines, result)
            _draw_slopes(slopes, result)


def _draw_lines(panel: "Axes", result: CoordinateResult) -> None:
    for name, slope in result.slopes.items():
        by_size = result.changes[name]
        failing = not abs(slope) <= result.tolerance
        last = [steps[-1] for steps in by_size.values()]
        colour = "tab:red" if failing else "tab:green"
        panel.plot(list(by_size), last, "o-", markersize=3, linewidth=1, color=colour, alpha=0.6)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xlabel(result.axis)
    panel.set_ylabel("RMS change of the activation since step 0")
    verdict = "pass" if result.passed else f"{len(result.failures)} of {len(result.slopes)} fail"
    panel.set_title(f"{result.label}: {verdict}")


def _draw_slopes(panel: "Axes", result: CoordinateResult) -> None:
    names = list(result.slopes)[::-1]
    slopes = [result.slopes[name] for name in names]
    colours = ["tab:green" if abs(slope) <= result.tolerance else "tab:red" for slope in slopes]
    panel.axvspan(-result.tolerance, result.tolerance, color="tab:green", alpha=0.1, linewidth=0)
    panel.scatter(slopes, range(len(names)), c=colours, s=14)
    panel.set_yticks(range(len(names)), [name.removeprefix("model.") for name in names], fontsize=6.5)
    panel.set_ylim(-1, len(names))
    panel.set_xlabel(f"slope against log {result.axis} (tolerance {result.tolerance:g})")
