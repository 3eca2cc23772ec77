"""Make the table of the study: `report.json` and `report.md` beside the results.

python recipes/reproduce/robust/report.py --results RESULTS
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.studies import provenance_line, read_runs

ARMS = ("teacher", "full", "full-no-replay", "adapter-text", "adapter-distilled", "last-text", "last-distilled")


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    folder = parser.parse_args().results
    results = {run["run"]["name"]: run for run in read_runs(folder)}
    seeds = sorted({run["run"]["seed"] for run in results.values()})
    content = {"seeds": seeds, "arms": table(results, seeds), "checks": checks(results, seeds)}
    content |= {"routers": routers(results, seeds), "sweeps": sweeps(results, seeds)}
    content["provenance"] = provenance_line(results.values())
    write_json(folder / "report.json", content)
    write_text(folder / "report.md", as_text(content))
    print(as_text(content))


def table(results: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each base and arm."""
    rows = []
    for name in ("small", "large", *ARMS):
        runs = [results[f"{name}-seed{seed}"] for seed in seeds if f"{name}-seed{seed}" in results]
        if runs:
            losses = {domain: [run["losses"][domain] for run in runs] for domain in ("old", "new")}
            rows.append({"name": name, "seeds": len(runs), **spread(losses), **costs(runs)})
    emulated = [results[f"teacher-seed{seed}"]["emulated"] for seed in seeds if f"teacher-seed{seed}" in results]
    if emulated:
        losses = {domain: [each[domain] for each in emulated] for domain in ("old", "new")}
        rows.append({"name": "emulated (plain sequences)", "seeds": len(emulated), **spread(losses)})
    return rows


def spread(losses: dict[str, list[float]]) -> dict[str, float | None]:
    """Return mean and standard deviation of both domains."""
    found: dict[str, float | None] = {name: mean(values) for name, values in losses.items()}
    found |= {f"{name}_std": stdev(values) if len(values) > 1 else None for name, values in losses.items()}
    return found


def costs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a run costs, in means."""
    counted = [run["flops"] for run in runs if run["flops"] is not None]
    return {
        "trained_parameters": runs[0]["trained_parameters"],
        "tflops": mean(counted) / 1e12 if counted else None,
        "seconds": mean(run["seconds"] for run in runs),
    }


def checks(results: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return the parts of the expectation for each seed; a difference below 0 agrees with it."""
    rows = []
    for seed in seeds:
        names = {name: f"{name}-seed{seed}" for name in ("teacher", "adapter-text", "adapter-distilled", "full")}
        if all(name in results for name in names.values()):
            losses = {name: results[full]["losses"] for name, full in names.items()}
            mine = losses["adapter-distilled"]
            rows.append(
                {
                    "seed": seed,
                    "a: new, minus teacher": mine["new"] - losses["teacher"]["new"],
                    "b: new, minus text alone": mine["new"] - losses["adapter-text"]["new"],
                    "c: adapter off is the base": results[names["adapter-distilled"]]["adapter_off_is_the_base"],
                    "d: old, minus text alone": mine["old"] - losses["adapter-text"]["old"],
                    "new, minus all weights": mine["new"] - losses["full"]["new"],
                    "old, minus all weights": mine["old"] - losses["full"]["old"],
                }
            )
    return rows


def routers(results: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return what a router between adapter off and on gives, for each seed."""
    rows = []
    for seed in seeds:
        run = results.get(f"adapter-distilled-seed{seed}")
        if run is not None:
            heads = {f"{head} {name}": value for head, by in run["heads"].items() for name, value in by.items()}
            rows.append({"seed": seed, **heads, **{f"on for {k}": v for k, v in run["routed_to_the_adapter"].items()}})
    return rows


def sweeps(results: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return the line of WiSE-FT, for each seed and alpha."""
    found = [(seed, results[f"sweep-seed{seed}"]) for seed in seeds if f"sweep-seed{seed}" in results]
    return [{"seed": seed, **row, "verdict": run["verdict"]} for seed, run in found for row in run["rows"]]


def as_text(content: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    parts = [f"# Documentation to German\n\n{content['provenance']}. Losses in nats per token, lower is better.\n"]
    for title in ("arms", "checks", "routers", "sweeps"):
        if content[title]:
            parts.append(f"## {title}\n\n{as_table(content[title])}\n")
    return "\n".join(parts)


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(shown(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value of a table."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
