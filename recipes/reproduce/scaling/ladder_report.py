"""Say what the ladder says: the forecast of its largest rungs, and what a base is worth.

    python recipes/reproduce/scaling/ladder_report.py [--results RESULTS] [--study ladder.yaml]

Everything is printed twice, with N counting the embeddings and without them. The verdicts are those of `falsified_if`.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_warmscale import fit_scaling_law
from hf_warmscale.checkpoints import write_json
from hf_warmscale.report import print_table
from hf_warmscale.scaling import ScalingLaw, draw_law, hold_out, make_frame
from hf_warmscale.studies import provenance_line, read_runs

HERE = Path(__file__).parent
TOLERANCE = 0.03
"""Nats: how far the forecast of a rung may be off, as it was written down before the first run."""

Rows = list[dict[str, Any]]


def main() -> None:
    """Read the stored runs, print and store the tables, draw the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "ladder")
    parser.add_argument("--study", type=Path, default=HERE / "ladder.yaml")
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--mixed", action="store_true", help="allow runs of several versions, and say so")
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    stored = [row for kind in ("scratch", "grown") for row in read_runs(arguments.results / kind)]
    print(provenance_line(stored, mixed=arguments.mixed))
    report: dict[str, Rows] = {}
    for embeddings in (True, False):
        suffix = "with embeddings" if embeddings else "without embeddings"
        scratch = [point(row, embeddings) for row in stored if row["kind"] == "scratch"]
        report[f"forecast, N {suffix}"] = forecast(scratch, study["predict"], embeddings, arguments.bootstrap)
        grown = [point(row, embeddings) for row in best_rates(stored)]
        if grown:
            report[f"grown, N {suffix}"] = worth(scratch, grown, embeddings)
        if embeddings:
            draw_law(fit_scaling_law(scratch), arguments.results.parent / "ladder_pictures")
    for title, rows in report.items():
        print_table(rows, title=title)
    write_json(arguments.results.parent / "ladder_report.json", report)


def point(row: Mapping[str, Any], embeddings: bool) -> dict[str, Any]:
    """Return a stored run as a point of a frame."""
    suffix = "" if embeddings else "_without_embeddings"
    return {
        "N": row[f"N{suffix}"],
        "N0": row[f"N0{suffix}"],
        **{name: row[name] for name in ("D", "D0", "loss", "run", "part", "hidden_size", "base")},
    }


def best_rates(stored: Rows) -> Iterator[dict[str, Any]]:
    """Yield the grown runs, each at the best of the rates that were tried at its longest budget."""
    groups: dict[tuple[Any, ...], dict[float, Rows]] = {}
    for row in stored:
        if row["kind"] == "grown":
            rates = groups.setdefault((row["hidden_size"], row["base"], row["seed"]), {})
            rates.setdefault(row["rate_offset"], []).append(row)
    for rates in groups.values():
        yield from min(rates.values(), key=lambda rows: float(max(rows, key=lambda row: float(row["D"]))["loss"]))


def forecast(rows: Rows, wanted: Mapping[str, Any], embeddings: bool, bootstrap: int) -> Rows:
    """Fit the small rungs and predict the large ones, budget by budget."""
    width = np.array([row["hidden_size"] for row in rows])
    frame = make_frame(rows, "chinchilla", embeddings=embeddings)
    train = np.isin(width, wanted["fitted_hidden_sizes"])
    if len(wanted["fitted_hidden_sizes"]) < 2:
        return []
    law = fit_scaling_law(frame.where(train), bootstrap=bootstrap)
    tables = []
    for size in wanted["predicted_hidden_sizes"]:
        step = hold_out(frame, train, width == size, "chinchilla")
        inside = within(law, frame.where(width == size))
        naive = min(step.last_value.mean, step.log_linear.mean)
        tables.append(
            {
                "hidden size": size,
                "points": step.num_test,
                "law, nats": step.law.mean,
                "last value, nats": step.last_value.mean,
                "log-linear, nats": step.log_linear.mean,
                "in the 95 % interval": inside,
                "holds": step.law.mean <= min(TOLERANCE, naive),
            }
        )
    return tables


def within(law: ScalingLaw, frame: Any) -> int | None:
    """Return how many points lie in the interval of a new run; `None` where there is none."""
    try:
        low, high = law.interval(N=frame.N, D=frame.D)
    except ValueError:
        return None
    return int(np.sum((low <= frame.loss) & (frame.loss <= high)))


def worth(scratch: Rows, grown: Rows, embeddings: bool) -> Rows:
    """Leave out one (g, D0) after the other, fit the law of grown runs to the rest, and predict what was left out."""
    rows = [*scratch, *grown]
    frame = make_frame(rows, "grown", embeddings=embeddings)
    keys = [(row["hidden_size"], row["base"]) for row in rows]
    tables: Rows = []
    for key in sorted({key for key in keys if key[1] is not None}):
        test = np.array([each == key for each in keys])
        try:
            step = hold_out(frame, ~test, test, "grown")
            alone = hold_out(frame, np.array([each[1] is None for each in keys]), test, "chinchilla")
        except ValueError as error:
            return [{"hidden size": key[0], "base, tokens per parameter": key[1], "cannot be fitted": str(error)}]
        tables.append(
            {
                "hidden size": key[0],
                "base, tokens per parameter": key[1],
                "points": step.num_test,
                "law of grown runs, nats": step.law.mean,
                "scratch's law, nats": alone.law.mean,
                "holds": step.law.mean < alone.law.mean,
            }
        )
    return tables


if __name__ == "__main__":
    main()
