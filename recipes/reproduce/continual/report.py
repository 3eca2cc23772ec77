"""Make the tables and the picture of the README from the stored runs, without training anything.

    python recipes/reproduce/continual/report.py

The layout is that of the tables of 2403.08763: share of replay, loss on the old and on the new domain, their average;
the compute of each row beside it. Compute is 6 x parameters x tokens; a continued run is charged its own tokens, and
beside them those of the pretraining it stands on.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import figure, markdown_table

HERE = Path(__file__).parent
OLD = "english"
SHIFTS = {"german": "English to German (strong)", "python": "English to Python (strong)",
          "english_short": "Long English to short English (weak)"}  # fmt: skip
LABELS = {"rewarmed": "re-warmed", "constant": "not re-warmed"}

Result = dict[str, Any]


def main() -> None:
    """Read the results, write `report.md`, `report.json` and `continual.png` beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    results = {
        str(path.relative_to(folder).with_suffix("")): json.loads(path.read_text())
        for path in sorted(folder.rglob("*.json"))
        if path.parent != folder
    }
    tables = {title: shift_rows(results, domain) for domain, title in SHIFTS.items()}
    tables["Three equal stages on random thirds of all text"] = stage_rows(results)
    text = "\n".join(f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items() if rows)
    write_text(folder / "report.md", text)
    write_json(folder / "report.json", tables)
    draw(tables, results, folder / "continual.png")
    print(text)


def shift_rows(results: dict[str, Result], domain: str) -> list[dict[str, object]]:
    """Return the table of one shift: the model before, each share of replay, and training from scratch."""
    rows = [row(runs_of(results, "base/"), domain, "pretrained", "-")]
    for label, text in LABELS.items():
        shares = {int(name.split("replay")[1].split("-")[0]) for name in results if f"{domain}/{label}-replay" in name}
        for share in sorted(shares):
            rows.append(row(runs_of(results, f"{domain}/{label}-replay{share}-"), domain, text, f"{share} %"))
    rows.append(row(runs_of(results, f"{domain}/alone-"), domain, "new domain from scratch", "-"))
    rows.append(row(runs_of(results, f"{domain}/union-"), domain, "union from scratch", "-"))
    return [found for found in rows if found is not None] if len(rows) > 2 else []


def runs_of(results: dict[str, Result], prefix: str) -> list[Result]:
    """Return the runs whose names begin so, by seed."""
    return [result for name, result in results.items() if name.startswith(prefix)]


def row(runs: list[Result], domain: str, training: str, replay: str) -> dict[str, object] | None:
    """Return the means over the seeds of one row, or `None` if it was not run."""
    if not runs:
        return None
    averages = [(run["losses"][OLD] + run["losses"][domain]) / 2 for run in runs]
    return {
        "training": training,
        "replay": replay,
        "seeds": len(runs),
        "old": mean(run["losses"][OLD] for run in runs),
        "new": mean(run["losses"][domain] for run in runs),
        "average": mean(averages),
        "± (std)": stdev(averages) if len(averages) > 1 else None,
        "forgetting": mean(map(forgetting, runs)) if runs[0]["run"]["parent"] else None,
        "TFLOPs": flops(runs[0], "tokens"),
        "TFLOPs with the pretraining": flops(runs[0], "total_tokens"),
    }


def stage_rows(results: dict[str, Result]) -> list[dict[str, object]]:
    """Return the mean loss over all text after each stage, under both schedules."""
    rows = []
    for schedule, name in (("cosine, re-warmed", "cosine"), ("infinite, annealed branch", "anneal"),
                           ("infinite, trunk", "end")):  # fmt: skip
        stages = [runs_of(results, f"splits/{name}-{stage}-") for stage in range(3)]
        if all(stages):
            losses = {f"after stage {n + 1}": mean(map(over_all, runs)) for n, runs in enumerate(stages)}
            last = [over_all(run) for run in stages[-1]]
            rows.append({"schedule": schedule, "seeds": len(last), **losses, "± (std)": spread(last)})
    return rows


def over_all(run: Result) -> float:
    """Return the mean loss over the validation sets."""
    return mean(run["losses"].values())


def spread(values: list[float]) -> float | None:
    """Return the standard deviation, where there are two values."""
    return stdev(values) if len(values) > 1 else None


def forgetting(run: Result) -> float:
    """Return the change of the loss on the old domain along a run, on the rows of the curve."""
    first, *_, last = run["curve"]
    return float(last[OLD] - first[OLD])


def flops(run: Result, tokens: str) -> float:
    """Return 6 x parameters x tokens in TFLOPs."""
    return 6e-12 * float(run["parameters"]) * float(run[tokens])


def draw(tables: dict[str, list[dict[str, object]]], results: dict[str, Result], path: Path) -> None:
    """Draw the first seed, which has every share of replay: old against new loss of every shift, and the stages."""
    panels = [(domain, title) for domain, title in SHIFTS.items() if tables[title]]
    first = {name: result for name, result in results.items() if name.endswith("-seed0") or name == "base/seed0"}
    with figure(path, size=(4.6 * (len(panels) + 1), 4.0)) as drawing:
        axes = drawing.subplots(1, len(panels) + 1, squeeze=False)[0]
        for place, (domain, title) in zip(axes, panels, strict=False):
            draw_shift(place, shift_rows(first, domain), title)
        draw_stages(axes[-1], results)


def draw_shift(axes: Any, rows: Iterable[dict[str, Any]], title: str) -> None:
    """Draw one shift: a line of replay shares for each treatment, the model before and the union as points."""
    rows = list(rows)
    for text, style in (("re-warmed", "-o"), ("not re-warmed", "--s")):
        line = [row for row in rows if row["training"] == text]
        axes.plot([row["new"] for row in line], [row["old"] for row in line], style, label=text, markersize=4)
        for row in line:
            axes.annotate(
                row["replay"], (row["new"], row["old"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    for row in rows:
        if row["training"] == "union from scratch":
            axes.plot(row["new"], row["old"], "k*", markersize=10, label="union from scratch")
        elif row["training"] == "pretrained":
            axes.axhline(row["old"], color="gray", linewidth=0.8, label="old domain before")
    axes.set(xlabel="loss on the new domain", ylabel="loss on the old domain", title=title)
    axes.legend(fontsize=7)


def draw_stages(axes: Any, results: dict[str, Result]) -> None:
    """Draw the mean loss over all text along three stages, first seed."""
    for names, label in ((("cosine",), "cosine, re-warmed"), (("trunk", "end"), "infinite, trunk")):
        points: list[tuple[float, float]] = []
        for stage in range(3):
            for name in names:
                run = results.get(f"splits/{name}-{stage}-seed0")
                points += [] if run is None else curve_points(run)
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    ends = [results[name] for stage in range(3) if (name := f"splits/anneal-{stage}-seed0") in results]
    if ends:
        axes.plot(
            [run["total_tokens"] for run in ends], [end_of(run) for run in ends], "o", label="infinite, annealed"
        )
    axes.set(xlabel="tokens", ylabel="mean loss over all text", title="Three equal stages")
    axes.legend(fontsize=7)


def curve_points(run: Result) -> list[tuple[float, float]]:
    """Return tokens and mean loss along a run."""
    before = run["total_tokens"] - run["tokens"]
    per_step = run["tokens"] / run["run"]["steps"]
    return [
        (before + point["step"] * per_step, mean(value for name, value in point.items() if name != "step"))
        for point in run["curve"]
    ]


def end_of(run: Result) -> float:
    """Return the last mean loss of the curve, on the rows that curves use."""
    return curve_points(run)[-1][1]


if __name__ == "__main__":
    main()
