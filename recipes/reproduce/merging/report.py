"""Turn the stored searches into `results.md` and the pictures, without searching anything.

python recipes/reproduce/merging/report.py [--output FOLDER]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_warmscale.checkpoints import write_text
from hf_warmscale.report import figure, markdown_table

HERE = Path(__file__).parent
ORDER = ("checkpoint 20", "pair 19+20", "uniform", "LAWA", "greedy soup", "trajectory", "simplex", "annealed")
TRUE_GAIN, NO_GAIN = 0.02, 1e-4
"""Nats per token."""


def main() -> None:
    """Parse the arguments and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    output = parser.parse_args().output
    parts = {"methods": methods, "matrix": matrix, "choice": choice, "landscapes": landscapes}
    sections = [report(output) for name, report in parts.items() if any((output / name).glob("*.json"))]
    write_text(output / "results.md", "\n".join(sections))
    print((output / "results.md").read_text())


def read(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Return the stored runs by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def methods(output: Path) -> str:
    """Compare the methods over all trajectories."""
    runs = read(output / "methods")
    by_method = [{row["method"]: row for row in run["rows"]} for run in runs]
    draw_methods(output / "methods.png", by_method)
    summary = [summarise(name, [rows[name] for rows in by_method]) for name in by_method[0]]
    each = [
        {
            "seed": str(run["seed"]),
            "method": name,
            **{domain: f"{rows[name][domain]:.4f}" for domain in ("in", "out")},
            **{
                key: interval(rows[name][key])
                for key in ("in against last", "in against annealed", "out against last")
            },
        }
        for run, rows in zip(runs, by_method, strict=True)
        for name in ORDER
    ]
    title = f"## Methods, mean of {len(runs)} trajectories"
    return f"{title}\n\n{markdown_table(summary)}\n## Each trajectory\n\n{markdown_table(each)}"


def summarise(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average one method; its worst and best trajectory in brackets."""
    result: dict[str, Any] = {"method": name, "trials": f"{np.mean([row['trials'] for row in rows]):.1f}"}
    for domain in ("in", "out"):
        result[domain] = f"{np.mean([row[domain] for row in rows]):.4f}"
        for other in ("last", "annealed"):
            gains = [row[f"{domain} against {other}"]["estimate"] for row in rows]
            result[f"{domain} against {other}"] = f"{np.mean(gains):+.4f} [{min(gains):+.4f}, {max(gains):+.4f}]"
    return result


def interval(difference: Mapping[str, float]) -> str:
    """Format a paired difference."""
    return f"{difference['estimate']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"


def draw_methods(path: Path, by_method: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Draw the gain over the last checkpoint, a point a trajectory."""
    names = [name for name in ORDER if name != "checkpoint 20"]
    with figure(path, size=(10.0, 4.5)) as drawing:
        for panel, (domain, title) in zip(
            drawing.subplots(1, 2), {"in": "in domain", "out": "out of domain (German)"}.items(), strict=True
        ):
            for index, name in enumerate(names):
                differences = [rows[name][f"{domain} against last"] for rows in by_method]
                shifts = np.linspace(-0.2, 0.2, len(differences))
                estimates = np.array([each["estimate"] for each in differences])
                ends = np.array(
                    [[each["estimate"] - each["low"], each["high"] - each["estimate"]] for each in differences]
                )
                panel.errorbar(estimates, index + shifts, xerr=ends.T, fmt="o", ms=4, lw=1, color=f"C{index}")
            panel.axvline(0.0, color="black", lw=0.8)
            panel.locator_params(axis="x", nbins=5)
            panel.set_yticks(range(len(names)), names if domain == "in" else [])
            panel.invert_yaxis()
            panel.set(xlabel="nats per token against the last checkpoint", title=title)


def matrix(output: Path) -> str:
    """Average the gain and the barrier of midpoints over trajectories."""
    runs = read(output / "matrix")
    numbers = runs[0]["checkpoints"]
    gains, barriers = zip(*(bends(run["losses"]) for run in runs), strict=True)
    gain, barrier = np.mean(gains, axis=0), np.mean(barriers, axis=0)
    draw_matrix(output / "matrix.png", numbers, gain, barrier)
    rows = []
    for distance in range(1, len(numbers)):
        diagonal = {"gain": np.diagonal(gain, distance), "barrier": np.diagonal(barrier, distance)}
        apart = f"{(numbers[distance] - numbers[0]) * 5} %"
        late = {
            f"{name}, later half": float(values[-min(len(values), 5) :].mean()) for name, values in diagonal.items()
        }
        rows.append({"apart": apart, **{name: float(values.mean()) for name, values in diagonal.items()}, **late})
    return f"## Midpoints of pairs by distance, {len(runs)} trajectories\n\n{markdown_table(rows)}"


def bends(losses: Sequence[Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain over the better end and the excess over the mean of the ends, NaN below the diagonal."""
    measured = np.array(losses, dtype=float)
    alone = np.diag(measured)
    return np.minimum.outer(alone, alone) - measured, measured - np.add.outer(alone, alone) / 2


def draw_matrix(path: Path, numbers: Sequence[int], gain: np.ndarray, barrier: np.ndarray) -> None:
    """Draw both as matrices."""
    with figure(path, size=(11.0, 4.8)) as drawing:
        titles = {"gain over the better end": gain, "excess over the mean of the ends": barrier}
        for panel, (title, values) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
            values = np.where(np.eye(len(numbers), dtype=bool), np.nan, values)
            bound = float(np.nanpercentile(np.abs(values), 75))
            colours = "RdBu" if title.startswith("gain") else "RdBu_r"
            image = panel.imshow(values, cmap=colours, vmin=-bound, vmax=bound)
            for i in range(len(numbers)):
                for j in range(i + 1, len(numbers)):
                    colour = "white" if abs(values[i, j]) > 0.7 * bound else "black"
                    panel.text(j, i, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=7, color=colour)
            ticks = [f"{number * 5} %" for number in numbers]
            panel.set_xticks(range(len(numbers)), ticks, fontsize=7)
            panel.set_yticks(range(len(numbers)), ticks, fontsize=7)
            panel.grid(False)
            panel.set(title=f"Midpoint: {title} (nats)", xlabel="later checkpoint", ylabel="earlier checkpoint")
            drawing.colorbar(image, ax=panel, shrink=0.8)


def choice(output: Path) -> str:
    """Count how often a merge was accepted, by its true gain."""
    runs = read(output / "choice") + read(output / "exhausted")
    for run in runs:
        finer = output / "truth" / f"{run['pair']}.json"
        if finer.exists():
            best = min(json.loads(finer.read_text()).values())
            run["true_gain"] = max(run["true_gain"], run["truth"]["1.0"] - best)
    runs.sort(key=lambda run: -run["true_gain"])
    classes = {
        f"at least {TRUE_GAIN}": [run for run in runs if run["true_gain"] >= TRUE_GAIN],
        "between": [run for run in runs if NO_GAIN < run["true_gain"] < TRUE_GAIN],
        "0": [run for run in runs if run["true_gain"] <= NO_GAIN],
    }
    counts = [
        {"true gain (nats)": name, "searches": len(members), "accepted": sum(run["accepted"] for run in members)}
        for name, members in classes.items()
    ]
    rows = [
        {
            "pair": run["pair"],
            "true gain": run["true_gain"],
            "accepted": str(run["accepted"]),
            "confirm": interval(run["interval"]),
            "trials": run["trials"],
        }
        for run in runs
    ]
    return f"## The choice\n\n{markdown_table(counts)}\n{markdown_table(rows)}"


def landscapes(output: Path) -> str:
    """Compare the search with the grid and with random search."""
    rows = []
    for path in sorted((output / "landscapes").glob("*-grid.json")):
        trajectory = path.name.removesuffix("-grid.json")
        grid = json.loads(path.read_text())
        best = min(row[3] for row in grid["grid"])
        start = json.loads((path.parent / f"{trajectory}-starts.json").read_text())["best"]
        runs = read(path.parent, f"{trajectory}-search-*.json")
        row = {"trajectory": trajectory, "triple": str(grid["numbers"]), "margin": start - best, "seeds": len(runs)}
        if runs:
            floor = min(best, *(min(run["values"]) for run in runs), *(min(run["random"]) for run in runs))
            ours = [min(run["values"]) - best for run in runs]
            row |= {
                "within 1e-3 of the grid": sum(each <= 1e-3 for each in ours),
                "trials": max(len(run["values"]) for run in runs),
                "worst against the grid": max(ours),
                "median regret": float(np.median([min(run["values"]) - floor for run in runs])),
                "random search": float(np.median([min(run["random"]) - floor for run in runs])),
            }
        rows.append(row)
    keys = max(rows, key=len).keys()
    return (
        f"## Landscapes of three checkpoints\n\n{markdown_table([{k: row.get(k, '') for k in keys} for row in rows])}"
    )


if __name__ == "__main__":
    main()
