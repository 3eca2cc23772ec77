"""Make the tables and the picture of the README from the stored runs.

    python recipes/reproduce/growth/report.py

Growth is measured against the run from scratch at its best of three rates, chosen by the mean over seeds. "Tokens to
scratch" is where a run's own curve, at the constant rate, first reaches the *cooled* final loss of that run with the
same seed, data order and budget: an upper bound, for a cooldown there would lower it. "With the base" adds the tokens
that the base's compute would have paid for at the larger size (the search for the base's rate is not charged, nor that
of scratch). Differences are paired by seed, with the 95 % interval of Student's t; curves are points every 32 steps.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import figure, markdown_table
from hf_warmscale.studies import mean_over_seeds

HERE = Path(__file__).parent
HIGHEST_DRAWN = 4.5
"""Nats per token; above it are the first steps from scratch."""
Result = dict[str, Any]


def main() -> None:
    """Read the results, write `report.md`, `report.json` and `growth.png` beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    results = {
        str(path.relative_to(folder).with_suffix("")): json.loads(path.read_text())
        for path in sorted(folder.rglob("*.json"))
        if path.parent != folder
    }
    tables = {
        "Width 64 to 128": [row(results, "width_2x", arm) for arm in arms(results, "width_2x")],
        "Carried on": carried_on(results),
        "Width 64 to 256": [row(results, "width_4x", arm) for arm in arms(results, "width_4x")],
        "Depth 4 to 8": [row(results, "depth_2x", arm) for arm in arms(results, "depth_2x")],
        "The base and its control": [base_row(name, results[name]) for name in results if _is_base(name)],
    }
    text = "\n".join(f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items() if rows)
    write_text(folder / "report.md", text)
    write_json(folder / "report.json", tables)
    draw(results, folder / "growth.png")
    print(text)


def arms(results: dict[str, Result], part: str) -> list[str]:
    """Return the arms of a part of the study, in the order of their names, scratch first."""
    names = {name.split("/")[1].rsplit("-seed", 1)[0] for name in results if name.startswith(f"{part}/")}
    return sorted(names, key=lambda arm: (not arm.startswith("scratch"), arm))


def runs_of(results: dict[str, Result], part: str, arm: str) -> list[Result]:
    """Return the runs of an arm, by seed."""
    return [result for name, result in results.items() if name.rsplit("-seed", 1)[0] == f"{part}/{arm}"]


def row(results: dict[str, Result], part: str, arm: str) -> dict[str, object]:
    """Return the row of an arm at the first budget of its part."""
    runs = runs_of(results, part, arm)
    losses = [run["cooled"][0]["validation_loss"] for run in runs]
    rivals = [scratch_of(results, part, run) for run in runs]
    reached = [tokens_to_scratch(run, rival) for run, rival in zip(runs, rivals, strict=True) if rival is not None]
    everywhere = [count for count in reached if count is not None]
    all_reach = bool(runs) and len(everywhere) == len(runs) and not arm.startswith("scratch")
    first = runs[0]
    charged = base_flops(results, first) / (6.0 * first["parameters"])
    gaps = [
        loss - rival["cooled"][0]["validation_loss"]
        for loss, rival in zip(losses, rivals, strict=True)
        if rival is not None
    ]
    return {
        "arm": arm,
        "seeds": len(runs),
        "lr": first["lr"],
        "tokens": tokens(first, first["cooled"][0]),
        "loss": mean(losses),
        "± (std)": stdev(losses) if len(losses) > 1 else None,
        "against scratch, paired": interval(gaps),
        "loss at step 0": mean(run["curve"][0]["validation_loss"] for run in runs),
        "M tokens to scratch": mean(everywhere) / 1e6 if all_reach else None,
        "M with the base": (mean(everywhere) + charged) / 1e6 if all_reach else None,
        "TFLOPs": flops(first, first["cooled"][0]) / 1e12,
        "TFLOPs with the base": (flops(first, first["cooled"][0]) + base_flops(results, first)) / 1e12,
    }


def interval(gaps: list[float]) -> str | None:
    """Return the mean of paired differences with its 95 % interval; without one for a single pair.

    The run that the others are measured against has no difference from itself.
    """
    if not any(gaps):
        return None
    if len(gaps) == 1:
        return f"{gaps[0]:+.4f}"
    known = mean_over_seeds(gaps)
    return None if known is None else f"{known.mean:+.4f} ± {known.high - known.mean:.4f}"


def scratch_of(results: dict[str, Result], part: str, run: Result) -> Result | None:
    """Return the run from scratch with the same seed, at the rate that is best over the seeds."""
    rivals = [arm for arm in arms(results, part) if arm.startswith("scratch")]
    complete = max((len(runs_of(results, part, arm)) for arm in rivals), default=0)
    losses = {
        arm: mean(each["cooled"][0]["validation_loss"] for each in runs_of(results, part, arm))
        for arm in rivals
        if len(runs_of(results, part, arm)) == complete
    }
    best = min(losses, key=lambda arm: losses[arm], default=None)
    return results.get(f"{part}/{best}-seed{run['run']['seed']}")


def carried_on(results: dict[str, Result]) -> list[dict[str, object]]:
    """Return the cooled losses of the runs with several budgets; the control's at the compute of base and run."""
    rows: list[dict[str, object]] = []
    for arm in arms(results, "width_2x"):
        for run in runs_of(results, "width_2x", arm):
            if len(run["cooled"]) > 1:
                rows.append(_budgets(results, arm, run["run"]["tokens_per_parameter"], run))
    controls = [result for name, result in results.items() if name.startswith("control/")]
    return rows + [_budgets(results, "small, trained on", run["run"]["compute_of"], run) for run in controls if rows]


def _budgets(results: dict[str, Result], arm: str, ratios: Sequence[float], run: Result) -> dict[str, object]:
    """Return the loss at each budget and, for what was grown, the tokens to scratch with the base charged."""
    scratch = results.get(f"width_2x/scratch-seed{run['run']['seed']}")
    grown = run["grown_from"] is not None and scratch is not None
    charged = base_flops(results, run) / (6.0 * run["parameters"])
    values: dict[str, object] = {"arm": arm}
    for place, (ratio, end) in enumerate(zip(ratios, run["cooled"], strict=True)):
        values[f"{ratio:g} tokens/parameter"] = end["validation_loss"]
        count = tokens_to_scratch(run, scratch, place) if grown and scratch is not None else None
        values[f"M to scratch's {ratio:g}, with the base"] = None if count is None else (count + charged) / 1e6
    return values


def base_row(name: str, result: Result) -> dict[str, object]:
    """Return the row of a run at the base shape."""
    last = result["cooled"][-1]
    return {
        "run": name,
        "lr": result["lr"],
        "parameters": result["parameters"],
        "tokens": tokens(result, last),
        "loss": last["validation_loss"],
        "TFLOPs": flops(result, last) / 1e12,
    }


def tokens_to_scratch(run: Result, scratch: Result, budget: int = 0) -> int | None:
    """Return the tokens at which a run first has the final loss of scratch, on the same windows, or `None`.

    Args:
        run (`dict`): its constant run counts up to the end of the budget, and the cooldown to it.
        scratch (`dict`): the run from scratch.
        budget (`int`): which of the cooldowns of both.
    """
    goal, end = scratch["cooled"][budget]["curve_loss"], run["cooled"][budget]
    constant = [point for point in run["curve"] if point["step"] <= end["step"]]
    points = [(point["step"], point["validation_loss"]) for point in (*constant, *end["curve"])]
    there = [step for step, loss in (*points, (end["step"], end["curve_loss"])) if loss <= goal]
    return tokens(run, {"step": min(there)}) if there else None


def tokens(run: Result, point: dict[str, float]) -> int:
    """Return the tokens that a run had seen at a point."""
    return int(point["step"] * run["tokens_per_step"])


def flops(run: Result, point: dict[str, float]) -> float:
    """Return 6 x parameters x tokens."""
    return 6.0 * float(run["parameters"]) * tokens(run, point)


def base_flops(results: dict[str, Result], run: Result) -> float:
    """Return the compute of the model that a run was grown from; 0 from scratch."""
    base = results.get(run["grown_from"] or "")
    return flops(base, base["cooled"][-1]) if base is not None else 0.0


def _is_base(name: str) -> bool:
    return name.startswith(("base/", "control/"))


def draw(results: dict[str, Result], path: Path) -> None:
    """Draw loss against training compute, the base's own charged, for the first seed of the 2x arms."""
    controls = [result for name, result in results.items() if name.startswith("control/")]
    first = {arm: runs_of(results, "width_2x", arm)[0] for arm in arms(results, "width_2x") if "-lr" not in arm}
    with figure(path, size=(7.5, 4.6)) as drawing:
        axes = drawing.add_subplot()
        for arm, run in first.items():
            _draw_run(axes, run, base_flops(results, run), label=arm)
        for control in controls[:1]:
            _draw_run(axes, control, 0.0, label="the base, trained longer", color="black", linestyle="--")
        axes.set(xlabel="TFLOPs, the base's own included", ylabel="validation loss (nats per token)", xscale="log")
        axes.set(xlim=(4, None), ylim=(None, HIGHEST_DRAWN))
        axes.set_xticks([5, 10, 20, 40, 80], labels=["5", "10", "20", "40", "80"])
        axes.set_xticks([], minor=True)
        axes.set_title("Width 64 to 128: at a constant rate (lines) and cooled down (dots), first seed")
        axes.legend(fontsize=8, ncols=2)


def _draw_run(axes: Axes, run: Result, charged: float, **style: str) -> None:
    """Draw the constant run as a line and the ends of its cooldowns as dots."""

    def compute(points: list[dict[str, float]]) -> list[float]:
        return [(flops(run, point) + charged) / 1e12 for point in points]

    curve, ends = run["curve"][1:], run["cooled"]
    (line,) = axes.plot(compute(curve), [point["validation_loss"] for point in curve], linewidth=1.2, **style)  # type: ignore[arg-type]
    losses = [end["curve_loss"] for end in ends]
    axes.plot(compute(ends), losses, "o", markersize=4, color=line.get_color())


if __name__ == "__main__":
    main()
