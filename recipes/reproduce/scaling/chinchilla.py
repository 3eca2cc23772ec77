"""Fit Chinchilla's 240 points, against the grid of 4,500 starts, and reproduce the premature stop.

python recipes/reproduce/scaling/chinchilla.py DATA [--starts 4500]
"""

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measurements import chinchilla

from hf_warmscale import fit_scaling_law
from hf_warmscale.checkpoints import write_json
from hf_warmscale.report import print_table
from hf_warmscale.scaling import make_frame, published
from hf_warmscale.scaling.laws import Array, Reference, to_coordinates, to_parameters
from hf_warmscale.scaling.objective import SCIPY_DEFAULT, TIGHT, Objective, minimise, stopped_early
from hf_warmscale.scaling.projection import starts

RESULTS = Path(__file__).parent / "results"
RAW = Reference(1.0, 1.0)
BOUNDS = [(-5.0, 5.0), (-20.0, 60.0), (-1.0, 4.0), (-20.0, 60.0), (-1.0, 4.0)]
ROUNDED = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}


def main() -> None:
    """Fit, time, compare, and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--starts", type=int, default=4500, help="of the grid; fewer are taken evenly from it")
    arguments = parser.parse_args()
    rows = chinchilla(arguments.data)
    begin, cpu = time.perf_counter(), time.process_time()
    law = fit_scaling_law(rows)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    frame = make_frame(rows, "chinchilla")
    raw = Objective(RAW.inputs(frame.N, frame.D, frame.D0, frame.N0), np.log(frame.loss))
    result: dict[str, Any] = {
        "points": len(frame),
        "fit": {
            "objective": law.objective,
            "parameters": law.parameters,
            "flags": law.flags,
            "wall_seconds": seconds,
            "cpu_seconds": cpu_seconds,
        },
        "published": {
            name: raw(to_coordinates("chinchilla", parameters, RAW))[0]
            for name, parameters in {
                "Hoffmann, rounded": ROUNDED,
                "Hoffmann, unrounded": published("hoffmann").parameters,
                "Besiroglu, rounded": published("besiroglu").parameters,
            }.items()
        },
        "premature_stops": [premature(raw, frame.loss, scale) for scale in (1.0, 1 / len(frame))],
        "grid": grid(raw, arguments.starts, law.objective),
    }
    result["grid"]["cpu_ratio"] = result["grid"]["cpu_seconds"] / cpu_seconds
    result["grid"]["wall_ratio"] = result["grid"]["wall_seconds"] / seconds
    print_table([{"parameter": name, "value": value} for name, value in law.parameters.items()], title="fit")
    for name in ("fit", "published", "premature_stops", "grid"):
        print(name, result[name])
    write_json(RESULTS / "chinchilla.json", result)


def premature(raw: Objective, loss: Array, scale: float) -> dict[str, Any]:
    """Start at the least squares solution and minimise the unscaled sum, or mean, with scipy's own tolerances."""
    start = starts(raw.inputs, loss, BOUNDS, weights=loss**2)[0]
    stopped, value = minimise(raw, start, BOUNDS, replace(SCIPY_DEFAULT, scale=scale))
    return {
        "objective": "sum" if scale == 1.0 else "mean",
        "sum_at_start": raw(start)[0],
        "sum_at_stop": value,
        "flagged": stopped_early(raw, stopped, BOUNDS),
        "parameters": to_parameters("chinchilla", stopped, RAW),
    }


def grid(raw: Objective, count: int, optimum: float) -> dict[str, Any]:
    """Minimise from the grid of starts of 2203.15556, in the units of N and D as they are."""
    halves, fives = np.arange(0, 2.5, 0.5), np.arange(0, 30, 5.0)
    points = [
        np.array([e, a, alpha, b, beta])
        for e, a, alpha, b, beta in product(np.arange(-1, 1.5, 0.5), fives, halves, fives, halves)
    ]
    points = [points[place] for place in np.linspace(0, len(points) - 1, count).round().astype(int)]
    begin, cpu = time.perf_counter(), time.process_time()
    values = np.array([minimise(raw, start, BOUNDS, TIGHT)[1] for start in points])
    return {
        "starts": count,
        "best": float(values.min()),
        "share_within_0.1_percent": float(np.mean(values <= 1.001 * optimum)),
        "wall_seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }


if __name__ == "__main__":
    main()
