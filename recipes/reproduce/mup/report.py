"""Turn the stored runs into `results.md` and the pictures, without training anything.

python recipes/reproduce/mup/report.py [--output FOLDER]
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from growth import growth_rows

from hf_warmscale.checkpoints import write_text
from hf_warmscale.report import markdown_table
from hf_warmscale.studies import read_runs
from hf_warmscale.tuning import CoordinateResult, Curve, TransferResult, find_optima
from hf_warmscale.tuning.coordinate_figure import draw_coordinates
from hf_warmscale.tuning.coordinate_result import Changes, fit_slopes
from hf_warmscale.tuning.ladder import Axis
from hf_warmscale.tuning.optimum import parabola_vertex
from hf_warmscale.tuning.transfer_figure import draw_transfer

HERE = Path(__file__).parent


def main() -> None:
    """Parse the arguments and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    output = parser.parse_args().output
    sections = [transfer_section(path.parent) for path in sorted(output.glob("transfer-*/transfer.json"))]
    sections += [growth_section(path.parent) for path in sorted(output.glob("growth*/growth.json"))]
    sections += [coordinate_section(path.parent) for path in sorted(output.glob("coordinates-*/coordinates.json"))]
    write_text(output / "results.md", "\n".join(sections))
    print((output / "results.md").read_text())


def transfer_section(folder: Path) -> str:
    """Fit the best learning rates of one study again from its runs."""
    results = [read_transfer(content) for content in json.loads((folder / "transfer.json").read_text())]
    draw_transfer(folder / "transfer.png", results)
    rows = [row for result in results for row in result.rows()]
    others = [row for result in results for row in otherwise_fitted(result)]
    return f"## {folder.name}\n\n{markdown_table(rows)}\nThe drift, fitted otherwise:\n\n{markdown_table(others)}"


def otherwise_fitted(result: TransferResult) -> list[dict[str, object]]:
    """Return the drift of every size by other summaries of the same runs: does the verdict hang on the fit?"""
    fits: dict[str, Callable[[Curve], float]] = {
        "median of the seeds": lambda curve: three_points(curve, median),
        "best seed": lambda curve: three_points(curve, min),
        "five points of the first seed": five_points,
    }
    vertices = {name: {size: fit(curve) for size, curve in result.curves.items()} for name, fit in fits.items()}
    first = next(iter(result.curves))
    return [
        {
            "rule": result.rule,
            result.axis: size,
            **{name: round(by_size[size] - by_size[first], 2) for name, by_size in vertices.items()},
        }
        for size in result.curves
    ]


def three_points(curve: Curve, summary: Callable[[Iterable[float]], float]) -> float:
    """Return the vertex around the lowest mean, with another summary over the seeds."""
    rates = sorted(curve)
    best = min(range(1, len(rates) - 1), key=lambda index: mean(curve[rates[index]].values()))
    window = rates[best - 1 : best + 2]
    return parabola_vertex([math.log2(rate) for rate in window], [summary(curve[rate].values()) for rate in window])


def five_points(curve: Curve) -> float:
    """Return the vertex of the parabola through the lowest loss of the first seed and two neighbours on each side."""
    rates = sorted(curve)
    best = min(range(len(rates)), key=lambda index: curve[rates[index]][0])
    window = rates[max(best - 2, 0) : best + 3]
    centre = math.log2(rates[best])
    curvature, slope, _ = np.polyfit([math.log2(r) - centre for r in window], [curve[r][0] for r in window], 2)
    return float(centre - slope / (2 * curvature))


def growth_section(folder: Path) -> str:
    """Fit the best learning rate of every grown size again, and set it beside the inherited one."""
    content = json.loads((folder / "growth.json").read_text())
    result = read_transfer(content)
    if len(result.curves) > 1:
        draw_transfer(folder / "growth.png", [result])
    return f"## {folder.name}\n\n{markdown_table(growth_rows(content['inherited_lr'], result))}"


def coordinate_section(folder: Path) -> str:
    """List the slopes of one coordinate check."""
    contents = json.loads((folder / "coordinates.json").read_text())
    results = [read_coordinates(content) for content in contents]
    draw_coordinates(folder / "coordinates.png", results)
    ranges = {result.label: slopes_of_seeds(folder / result.label / "runs", result.axis) for result in results}
    rows = [
        {"activation": name}
        | {f"{result.label}: slope": round(result.slopes[name], 3) for result in results}
        | {f"{label}: seeds": ranges[label][name] for label in ranges}
        for name in results[0].slopes
    ]
    verdicts = [f"{result.label}: {'pass' if result.passed else f'{len(result.failures)} fail'}" for result in results]
    return f"## {folder.name} ({', '.join(verdicts)})\n\n{markdown_table(rows)}"


def slopes_of_seeds(runs: Path, axis: Axis) -> dict[str, str]:
    """Return the least and the greatest slope of each activation, each seed fitted alone."""
    seeds: dict[int, dict[int, Changes]] = {}
    for run in read_runs(runs):
        seeds.setdefault(run["seed"], {})[run["size"]] = run["changes"]
    fits = [
        fit_slopes({size: [by_size[size]] for size in sorted(by_size)}, label="", axis=axis)
        for by_size in seeds.values()
    ]
    slopes = {name: [fit.slopes[name] for fit in fits] for name in fits[0].slopes}
    return {name: f"{min(values):.3f} .. {max(values):.3f}" for name, values in slopes.items()}


def read_coordinates(content: dict[str, Any]) -> CoordinateResult:
    """Read what `CoordinateResult.to_dict` wrote; JSON has made the sizes strings."""
    changes = {
        name: {int(size): steps for size, steps in by_size.items()} for name, by_size in content["changes"].items()
    }
    return CoordinateResult(content["label"], content["axis"], content["tolerance"], changes, content["slopes"])


def read_transfer(content: dict[str, Any]) -> TransferResult:
    """Read what `TransferResult.to_dict` wrote."""
    curves: dict[int, dict[float, dict[int, float]]] = {}
    for point in content["points"]:
        loss = math.inf if point["loss"] is None else point["loss"]
        curves.setdefault(point["size"], {}).setdefault(point["lr"], {})[point["seed"]] = loss
    return TransferResult(content["rule"], content["axis"], curves, find_optima(curves))


if __name__ == "__main__":
    main()
