"""Predict what was held out: nanoLM's widths, the Gemstones, and the rollout of every file beside two baselines.

python recipes/reproduce/scaling/backtests.py DATA
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from measurements import FILES, NANOLM, gemstones

from hf_warmscale import fit_scaling_law
from hf_warmscale.checkpoints import write_json
from hf_warmscale.report import print_table
from hf_warmscale.scaling import Step, draw_law, hold_out, make_frame

RESULTS = Path(__file__).parent / "results"
DELTAS = {"Huber": 1e-3, "least squares": math.inf}


def main() -> None:
    """Make and store all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data
    tables = {
        "nanoLM: widths, error of the prediction": widths(),
        "Gemstones: N < 1e9 predicts N > 1.5e9": held_out_gemstones(folder),
        "Rollouts: all smaller sizes predict the next": rollouts(folder),
    }
    for title, rows in tables.items():
        print_table(rows, title=title)
    write_json(RESULTS / "backtests.json", tables)


def widths() -> list[dict[str, Any]]:
    """Fit the first seven, or eight, of nanoLM's ten widths and predict the others."""
    n, loss = np.array(NANOLM["N"]), np.array(NANOLM["loss"])
    rows = []
    for count in (7, 8):
        for name, delta in DELTAS.items():
            law = fit_scaling_law({"N": n[:count], "loss": loss[:count]}, form="power", delta=delta)
            off = 100 * (law.predict(N=n) / loss - 1)
            errors = {f"{width}, %": float(off[place]) for place, width in ((7, 1024), (8, 2048), (9, 3072))}
            parameters = {"b": law.parameters["b"], "c": law.parameters["c"]}
            rows.append({"fitted": f"first {count}", "criterion": name, **parameters, **errors})
            if count == 7 and name == "Huber":
                draw_law(law, RESULTS / "nanolm")
    return rows


def held_out_gemstones(folder: Path) -> list[dict[str, Any]]:
    """Fit the Gemstones below 1e9 parameters and predict those above 1.5e9."""
    frame = make_frame(gemstones(folder), "chinchilla")
    rows = []
    for name, delta in DELTAS.items():
        step = hold_out(frame, frame.N < 1e9, frame.N > 1.5e9, "chinchilla", delta=delta)
        rows.append({"criterion": name, "fitted": step.num_train, "predicted": step.num_test, **errors_of(step)})
    return rows


def rollouts(folder: Path) -> list[dict[str, Any]]:
    """Roll out every file."""
    rows = []
    for name, read in FILES.items():
        law = fit_scaling_law(read(folder))
        found = law.backtest
        assert law.frame is not None
        rows.append(
            {
                "file": name,
                "points": len(law.frame),
                "sizes predicted": len(found.steps),
                "points predicted": sum(step.num_test for step in found.steps),
                **errors_of(found),
                "flags": "; ".join(law.flags) or None,
            }
        )
        draw_law(law, RESULTS / name)
    return rows


def errors_of(found: Any | Step) -> dict[str, float]:
    """Return the mean relative errors of the law and of the two baselines, in percent."""
    names = {"law": "law, %", "last_value": "last value, %", "log_linear": "log-linear, %"}
    return {label: 100 * getattr(found, name).mare for name, label in names.items()}


if __name__ == "__main__":
    main()
