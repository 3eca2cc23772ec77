"""Print the tables of E1, E2, E5 and E8 as far as they have run, with the verdicts that `study.yaml` asks for.

    python recipes/reproduce/decide/report.py RESULTS [--pictures FOLDER]

Every arm stands at its own best rate: the one with the lowest mean over the seeds of the loss on the selection rows.
All printed losses are of the other rows.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from hf_warmscale.report import figure, markdown_table
from hf_warmscale.studies import SeedMean, mean_over_seeds, provenance_line, read_runs

HERE = Path(__file__).parent
Result = dict[str, Any]
Arm = list[Result]
"""The runs of an arm at its best rate, by seed."""


def main() -> None:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    runs = {part: read_runs(arguments.results / part) for part in ("base", "E1", "E2", "E5-width", "E5-depth", "E8")}
    charged = {each["run"]["name"]: flops(each) for each in runs["base"]}
    shares: dict[str, list[float | None]] = {}
    for part in ("E1", "E5-width", "E5-depth"):
        if "scratch" in (arms := arms_of(runs[part])):
            print(f"\n{part}. {provenance_line(runs[part])}\n")
            shares[part] = growth_table(arms, charged)
    if runs["E2"] and (arms := arms_of(runs["E1"])):
        print(f"\nE2. {provenance_line(runs['E2'])}\n")
        trained_on_table(arms_of(runs["E2"])["trained-on"], arms)
    for part in ("E5-width", "E5-depth"):
        if part in shares and "E1" in shares:
            print(f"{part}: the best share with the base is {shown(shares[part])}; that of E1 {shown(shares['E1'])}.")
    if runs["E8"]:
        print(f"\nE8. {provenance_line(runs['E8'])}\n")
        schedule_table(runs["E8"], design["E8"])
    if arguments.pictures is not None and runs["E1"]:
        draw(arms_of(runs["E1"]), arguments.pictures / "growth.png")


def arms_of(runs: Sequence[Result], budget: int = -1) -> dict[str, Arm]:
    """Return every arm at its best rate."""
    found: dict[str, dict[float, Arm]] = {}
    for each in runs:
        found.setdefault(each["run"]["arm"], {}).setdefault(each["run"]["octave"], []).append(each)
    return {arm: best_of(list(rates.values()), budget) for arm, rates in found.items()}


def best_of(rates: Sequence[Arm], budget: int) -> Arm:
    """Return the runs at the best rate; a rate that has run on fewer seeds, or that diverged on one, comes last."""
    seeds = max(len(runs) for runs in rates)

    def selection(runs: Arm) -> float:
        losses = [run["cooled"][budget].get("selection_loss") for run in runs]
        return mean(losses) if len(runs) == seeds and None not in losses else math.inf

    return sorted(min(rates, key=selection), key=lambda run: int(run["run"]["seed"]))


def growth_table(arms: dict[str, Arm], charged: dict[str, float]) -> list[float | None]:
    """Print an arm in every row, and return the lowest share of tokens that an arm needs, the base's charged."""
    scratch, rows, best = arms["scratch"], [], [math.inf, math.inf]
    for name, arm in arms.items():
        free, paid = (mean_share(arm, scratch, charged if counts else {}) for counts in (False, True))
        grown = name != "scratch"
        rows.append(
            {
                "arm": name,
                "octave": arm[0]["run"]["octave"],
                "seeds": len(arm),
                **{f"loss at {tokens(arm[0], end) / 1e6:.2f} M": loss(arm, place) for place, end in ends(arm)},
                "minus scratch": verdict(arm, scratch) if grown else None,
                "share of tokens": free if grown else None,
                "with the base": paid if grown else None,
            }
        )
        if grown and paid is not None and paid < best[0]:
            best = [paid, free if free is not None else math.inf]
    print(markdown_table(rows))
    return [each if math.isfinite(each) else None for each in best]


def trained_on_table(control: Arm, arms: dict[str, Arm]) -> None:
    """Print the small model trained on, against each grown arm at its last budget."""
    rows = []
    for place, name in enumerate(("equal tokens", "equal compute, the base's charged")):
        for arm, runs in arms.items():
            row = {"control at": name, "loss": loss(control, place), "against": arm, "its loss": loss(runs, -1)}
            rows.append({**row, "control minus it": verdict(control, runs, place, -1)})
    print(markdown_table(rows))


def schedule_table(runs: Sequence[Result], part: dict[str, Any]) -> None:
    """Print cooldown and cosine at each budget, and whether they are equivalent."""
    rows = []
    for place, budget in enumerate(part["tokens"]):
        cosine = arms_of([run for run in runs if run["run"]["arm"] == "cosine" and run["run"]["tokens"] == [budget]])
        cooled = arms_of([run for run in runs if run["run"]["arm"] == "cooldown"], budget=place)
        if "cosine" not in cosine or "cooldown" not in cooled:
            continue
        one, other = cooled["cooldown"], cosine["cosine"]
        rows.append(
            {
                "M tokens": budget / 1e6,
                "cooldown": loss(one, place),
                "cosine": loss(other, -1),
                "difference": verdict(one, other, place, -1),
                "within": equivalence(mean_over_seeds(differences(one, other, place, -1)), float(part["equivalence"])),
            }
        )
    print(markdown_table(rows))


def ends(arm: Arm) -> list[tuple[int, Result]]:
    """Return the cooled budgets of an arm with their places."""
    return list(enumerate(arm[0]["cooled"]))


def loss(arm: Arm, place: int) -> float | None:
    """Return the mean loss of an arm at a budget, or `None` if a run diverged."""
    losses = [run["cooled"][place]["validation_loss"] for run in arm]
    return None if None in losses else mean(losses)


def differences(one: Arm, other: Arm, place: int = -1, rival: int = -1) -> list[float]:
    """Return the differences of two arms over the seeds that both have."""
    losses = {run["run"]["seed"]: run["cooled"][rival]["validation_loss"] for run in other}
    pairs = [(run["cooled"][place]["validation_loss"], losses.get(run["run"]["seed"])) for run in one]
    return [a - b for a, b in pairs if a is not None and b is not None]


def verdict(one: Arm, other: Arm, place: int = -1, rival: int = -1) -> str:
    """Return the difference of two arms in words."""
    found = differences(one, other, place, rival)
    if (known := mean_over_seeds(found)) is None:
        return f"{found[0]:+.4f} (1 seed)" if found else "no pair"
    return f"{known}, below 0 on {sum(each < 0 for each in found)}"


def equivalence(known: SeedMean | None, margin: float) -> str:
    """Return whether an interval lies within a margin, outside of it, or neither."""
    if known is None:
        return "one seed"
    if -margin <= known.low and known.high <= margin:
        return "yes"
    return "no" if known.high < -margin or known.low > margin else "not determined"


def mean_share(arm: Arm, scratch: Arm, charged: dict[str, float]) -> float | None:
    """Return the mean over the seeds of `share`, or `None` if a run never has scratch's loss."""
    rivals = {run["run"]["seed"]: run for run in scratch}
    pairs = [(run, rivals[run["run"]["seed"]]) for run in arm if run["run"]["seed"] in rivals]
    shares = [share(run, rival, charged.get(run["starts_from"] or "", 0.0)) for run, rival in pairs]
    found = [each for each in shares if each is not None]
    return mean(found) if found and len(found) == len(shares) else None


def share(run: Result, scratch: Result, base_flops: float) -> float | None:
    """Return the tokens at which a run has scratch's last loss, over scratch's; see `break_even_share` in the design.

    A run that is below it at its first budget already gives that budget: an upper bound.
    """
    goal, last = scratch["cooled"][-1]["validation_loss"], tokens(scratch, scratch["cooled"][-1])
    points = [(tokens(run, end), end["validation_loss"]) for end in run["cooled"]]
    if goal is None or any(value is None for _, value in points):
        return None
    spent = reached(goal, points)
    return None if spent is None else (spent + base_flops / (6 * run["parameters"])) / last


def reached(goal: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Return the tokens at which a curve first has a loss, straight between its points in the logarithm of the tokens.

    Example:

    ```python
    >>> reached(3.0, [(1e6, 3.5), (4e6, 2.5)])
    2000000.0
    ```
    """
    if points[0][1] <= goal:
        return points[0][0]
    for (before, higher), (after, lower) in pairwise(points):
        if lower <= goal:
            part = (higher - goal) / (higher - lower)
            return math.exp(math.log(before) + part * (math.log(after) - math.log(before)))
    return None


def tokens(run: Result, end: Result) -> float:
    """Return the tokens that a run had seen at a budget."""
    return float(end["step"] * run["tokens_per_step"])


def flops(run: Result) -> float:
    """Return 6 x parameters x tokens."""
    return 6.0 * float(run["parameters"]) * tokens(run, run["cooled"][-1])


def shown(share_of: Sequence[float | None]) -> str:
    """Return a share with and without the base."""
    paid, free = (f"{each:.2f}" if each is not None else "not reached" for each in share_of)
    return f"{paid} ({free} without it)"


def draw(arms: dict[str, Arm], path: Path) -> None:
    """Draw the cooled losses of every arm and seed of E1 against the tokens."""
    with figure(path) as drawing:
        axes = drawing.add_subplot()
        for number, (name, arm) in enumerate(arms.items()):
            for place, run in enumerate(arm):
                points = [(tokens(run, end) / 1e6, end["validation_loss"]) for end in run["cooled"]]
                label = name if place == 0 else None
                axes.plot(*zip(*points, strict=True), marker="o", color=f"C{number}", alpha=0.7, label=label)
        axes.set_xlabel("million tokens of the large model")
        axes.set_ylabel("nats per token after the cooldown")
        axes.set_title("Every seed of every arm at its best rate")
        axes.legend()


if __name__ == "__main__":
    main()
