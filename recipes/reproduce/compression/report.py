"""Print the tables of the studies A and B, with the verdicts that `study.yaml` asks for.

python recipes/reproduce/compression/report.py RESULTS [--pictures FOLDER]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from hf_warmscale.report import figure, markdown_table
from hf_warmscale.studies import mean_over_seeds, provenance_line, read_runs

HERE = Path(__file__).parent
Result = dict[str, Any]
DIFFERENCES = (
    ("shrunk", "scratch-distilled"),
    ("shrunk-text", "scratch"),
    ("undone", "shrunk"),
    ("shrunk", "trained-on"),
    ("undone", "trained-on"),
)


def main() -> None:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    for name, table in {"A": train_large, "B": shrink_and_heal}.items():
        results = read_runs(arguments.results / name)
        if results:
            print(f"\n{name}. {provenance_line(results)}\n")
            table(design, results)
            if name == "A" and arguments.pictures is not None:
                draw(results, arguments.pictures / "train_large.png")


def train_large(design: dict[str, Any], results: Sequence[Result]) -> None:
    """Print, for each budget, the best of every size and the difference of the largest from the smallest."""
    sizes, seeds = list(design["A"]["sizes"]), design["seeds"]
    for bits in (8, 4):
        smallest = points(results, sizes[0], None)
        budget = min(row["bytes"] for row in smallest if (row["bits"], row["sparsity"]) == (bits, 0))
        best = {size: [best_within(points(results, size, seed), budget) for seed in seeds] for size in sizes}
        print(f"Within {budget / 1e3:.1f} kB (the smallest in {bits} bits):\n")
        print(markdown_table([size_row(size, best[size]) for size in sizes]))
        print(f"{sizes[-1]} minus {sizes[0]}: {verdict(best[sizes[-1]], best[sizes[0]])}\n")


def size_row(size: str, found: Sequence[Result | None]) -> dict[str, object]:
    """Return a row of the table of A."""
    reached = [row for row in found if row is not None]
    chosen = ", ".join(f"{row['sparsity']:g} at {row['bits'] or 'stored'}" for row in reached)
    loss = mean(float(row["judge"]) for row in reached) if reached else None
    return {"hidden size": int(size), "seeds": len(reached), "loss": loss, "zeros at bits": chosen}


def shrink_and_heal(design: dict[str, Any], results: Sequence[Result]) -> None:
    """Print the healed loss of every arm at its own best rate, and the differences that are asked for."""
    arms = design["B"]["arms"]
    best = {arm: [best_of(results, arm, seed) for seed in design["seeds"]] for arm in arms}
    rows: list[dict[str, object]] = []
    for arm in arms:
        found = [each for each in best[arm] if each is not None]
        before = mean(float(each["before"]["judge"]) for each in found) if found else None
        after = mean(float(each["judge"]) for each in found) if found else None
        rows.append({"arm": arm, "seeds": len(found), "before": before, "after": after})
    print(markdown_table(rows))
    for one, other in DIFFERENCES:
        print(f"{one} minus {other}: {verdict(best[one], best[other])}")


def best_of(results: Sequence[Result], arm: str, seed: int) -> Result | None:
    """Return the run of an arm and a seed with the lowest selecting loss."""
    runs = [each for each in results if each["run"]["arm"] == arm and each["run"]["seed"] == seed]
    finite = [each for each in runs if each["select"] is not None]
    return min(finite, key=lambda each: float(each["select"]), default=None)


def points(results: Sequence[Result], size: str, seed: int | None) -> list[Result]:
    """Return the compressed models of a size, of one seed or of all."""
    chosen = [
        each
        for each in results
        if each["run"]["kind"] == "prune" and each["run"]["arm"] == size and seed in (None, each["run"]["seed"])
    ]
    return [row for each in chosen for row in each.get("rows", []) if row["select"] is not None]


def best_within(rows: Sequence[Result], budget: int) -> Result | None:
    """Return the row with the lowest selecting loss that fits."""
    return min((row for row in rows if row["bytes"] <= budget), key=lambda row: float(row["select"]), default=None)


def verdict(one: Sequence[Result | None], other: Sequence[Result | None]) -> str:
    """Return the mean paired difference over seeds with its 95 % t interval."""
    pairs = zip(one, other, strict=True)
    found = [float(a["judge"]) - float(b["judge"]) for a, b in pairs if a is not None and b is not None]
    known = mean_over_seeds(found)
    return f"{len(found)} paired seeds, no interval" if known is None else f"{known} nats per token"


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw every compressed model of A."""
    with figure(path) as drawing:
        axes = drawing.add_subplot()
        for number, size in enumerate(dict.fromkeys(each["run"]["arm"] for each in results)):
            rows = points(results, size, None)
            axes.scatter(
                [row["bytes"] / 1e3 for row in rows],
                [row["judge"] for row in rows],
                s=14,
                color=f"C{number}",
                label=f"hidden size {size}",
            )
        axes.set(xscale="log", xlabel="kB on disk (log scale)", ylabel="nats per token (judging documents)")
        axes.set_title("Equal training FLOPs, then pruned and quantized", fontsize=10)
        axes.legend()


if __name__ == "__main__":
    main()
