"""Make the tables and the picture of the README from the stored runs.

    python recipes/reproduce/growth/report.py

Growth is measured against the run from scratch at its best of three rates, chosen by the mean over seeds. "Tokens to
scratch" is where a run's own curve, at the constant rate, first reaches the *cooled* final loss of that run with the
same seed, data order and budget: an upper bound, for a cooldown there would lower it. "Base charged" adds the tokens
that the base's compute would have paid for at the larger size (the search for the base's rate is not charged, nor that
of scratch). Differences are paired by seed, with the 95 % interval of Student's t; curves are points every 32 steps.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import figure, markdown_table

HERE = Path(__file__).parent
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
        "tokens to scratch": mean(everywhere) if all_reach else None,
        "base charged": mean(everywhere) + charged if all_reach else None,
        "PFLOPs": flops(first, first["cooled"][0]) / 1e15,
        "PFLOPs with the base": (flops(first, first["cooled"][0]) + base_flops(results, first)) / 1e15,
    }


def interval(gaps: list[float]) -> str | None:
    """Return the mean of paired differences with its 95 % interval; without one for a single pair.

    The run that the others are measured against has no difference from itself.
    """
    if not any(gaps):
        return None
    if len(gaps) == 1:
        return f"{gaps[0]:+.4f}"
    half = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / len(gaps) ** 0.5
    return f"{mean(gaps):+.4f} ± {half:.4f}"


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
                rows.append(_budgets(arm, run["run"]["tokens_per_parameter"], run))
    controls = [result for name, result in results.items() if name.startswith("control/")]
    return rows + [_budgets("small, trained on", run["run"]["compute_of"], run) for run in controls if rows]


def _budgets(arm: str, ratios: Sequence[float], run: Result) -> dict[str, object]:
    losses = {
        f"{ratio:g} tokens/parameter": end["validation_loss"] for ratio, end in zip(ratios, run["cooled"], strict=True)
    }
    return {"arm": arm, **losses}


def base_row(name: str, result: Result) -> dict[str, object]:
    """Return the row of a run at the base shape."""
    last = result["cooled"][-1]
    return {
        "run": name,
        "lr": result["lr"],
        "parameters": result["parameters"],
        "tokens": tokens(result, last),
        "loss": last["validation_loss"],
        "PFLOPs": flops(result, last) / 1e15,
    }


def tokens_to_scratch(run: Result, scratch: Result) -> float | None:
    """Return the tokens at which a run first has the final loss of scratch, on the same windows, or `None`."""
    goal, end = scratch["cooled"][0]["curve_loss"], run["cooled"][0]
    points = [(point, point["validation_loss"]) for point in [*run["curve"], *end["curve"]]]
    for point, loss in [*points, (end, end["curve_loss"])]:
        if loss <= goal:
            return float(tokens(run, point))
    return None


def tokens(run: Result, point: dict[str, float]) -> int:
    """Return the tokens that a run had seen at a point."""
    return int(point["step"] * run["tokens_per_step"])


def flops(run: Result, point: dict[str, float]) -> float:
    """Return 6 x parameters x tokens."""
    return 6.0 * run["parameters"] * tokens(run, point)


def base_flops(results: dict[str, Result], run: Result) -> float:
    """Return the compute of the model that a run was grown from; 0 from scratch."""
    base = results.get(run["grown_from"] or "")
    return flops(base, base["cooled"][-1]) if base is not None else 0.0


def _is_base(name: str) -> bool:
    return name.startswith(("base/", "control/"))


def draw(results: dict[str, Result], path: Path) -> None:
    """Draw loss against training compute, the base's own charged, for the first seed of the 2x arms."""
    with figure(path, size=(7.5, 4.6)) as drawing:
        axes = drawing.add_subplot()
        for arm in arms(results, "width_2x"):
            runs = runs_of(results, "width_2x", arm)
            if "-lr" in arm:
                continue
            run, charged = runs[0], base_flops(results, runs[0])
            points = [*run["curve"][1:], *run["cooled"][0]["curve"]] if len(run["cooled"]) == 1 else run["curve"][1:]
            axes.plot(
                [(flops(run, point) + charged) / 1e15 for point in points],
                [point["validation_loss"] for point in points],
                label=arm,
                linewidth=1.2,
            )
        control = next((result for name, result in results.items() if name.startswith("control/")), None)
        if control is not None:
            points = [*control["curve"][1:], *control["cooled"][-1]["curve"]]
            axes.plot(
                [flops(control, point) / 1e15 for point in points],
                [point["validation_loss"] for point in points],
                label="the base, trained longer",
                color="black",
                linestyle="--",
                linewidth=1.2,
            )
        axes.set(xlabel="PFLOPs, the base's own included", ylabel="validation loss (nats per token)", xscale="log")
        axes.set_title("Width 64 to 128")
        axes.legend(fontsize=8, ncols=2)


if __name__ == "__main__":
    main()
