"""Print the table of the clones beside scratch, as far as they have run, and the verdicts of `study.yaml`.

    python recipes/reproduce/cloning/table.py RESULTS --scratch DECIDE_RESULTS/E1 [--pictures FOLDER]

Every arm stands at its own best rate, chosen on the selection rows; all printed losses are of the other rows.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "decide"))
from report import Arm, Result, arms_of, draw, flops, mean_share, verdict  # noqa: E402

from hf_warmscale.report import markdown_table  # noqa: E402
from hf_warmscale.studies import provenance_line, read_runs  # noqa: E402


def main() -> None:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--scratch", type=Path, required=True, help="the results of E1 of recipes/reproduce/decide")
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    runs = read_runs(arguments.results)
    rivals = [each for each in read_runs(arguments.scratch) if each["run"]["arm"] == "scratch"]
    base = {each["run"]["name"]: flops(each) for each in runs if each["run"]["arm"] == "base"}
    arms = arms_of([each for each in runs if each["run"]["arm"] != "base"])
    scratch = arms_of(rivals)["scratch"]
    print(f"Clones: {provenance_line(runs)}\nScratch: {provenance_line(rivals)}\n")
    print(markdown_table([row(name, arm, scratch, base) for name, arm in {"scratch": scratch, **arms}.items()]))
    print(sentence(arms, scratch))
    if arguments.pictures is not None:
        draw({"scratch": scratch, **arms}, arguments.pictures / "cloning.png")


def row(name: str, arm: Arm, scratch: Arm, base: dict[str, float]) -> dict[str, Any]:
    """Return the row of an arm: its losses, and how much sooner it has scratch's last loss."""
    cloned = name != "scratch"
    losses = {
        round(end["step"] / arm[0]["cooled"][-1]["step"], 2): place for place, end in enumerate(arm[0]["cooled"])
    }
    found: dict[str, Any] = {"arm": name, "octave": arm[0]["run"]["octave"], "seeds": len(arm)}
    for share in (0.25, 0.5, 1.0):
        place = losses.get(share)
        found[f"loss at {share:g} of the tokens"] = None if place is None else mean_loss(arm, place)
    found["minus scratch"] = verdict(arm, scratch) if cloned else None
    found["speed-up"] = speed_up(arm, scratch, {}) if cloned else None
    found["with the base"] = speed_up(arm, scratch, base) if cloned else None
    for what in ("neurons", "hidden"):
        found[f"cosine of {what}"] = (
            f"{cosine(arm, what, None):.3f} -> {cosine(arm, what, -1):.3f}" if cloned else None
        )
    return found


def mean_loss(arm: Arm, place: int) -> float | None:
    """Return the mean loss over the seeds, or `None` if a run diverged."""
    losses = [run["cooled"][place]["validation_loss"] for run in arm]
    return None if None in losses else mean(losses)


def speed_up(arm: Arm, scratch: Arm, base: dict[str, float]) -> float | None:
    """Return scratch's tokens over the tokens at which the arm has scratch's last loss, or `None` if it never has."""
    share = mean_share(arm, scratch, base)
    return None if share is None else 1 / share


def cosine(arm: Arm, what: str, place: int | None) -> float:
    """Return the mean cosine between copies at the start (`None`) or at a budget."""
    ends: list[Result] = [run if place is None else run["cooled"][place] for run in arm]
    return mean(end["copies"][what] for end in ends)


def sentence(arms: dict[str, Arm], scratch: Arm) -> str:
    """Return what the design asks for."""
    found = {name: speed_up(arm, scratch, {}) for name, arm in arms.items()}
    known = {name: value for name, value in found.items() if value is not None}
    best = max(known, key=lambda name: known[name]) if known else None
    parallel = [name for name, arm in arms.items() if cosine(arm, "neurons", -1) > 0.99]
    first = f"The best speed-up is {known[best]:.2f} ({best})" if best else "No arm has scratch's loss"
    return f"{first}; copies stay more than 0.99 parallel in: {', '.join(parallel) or 'none'}."


if __name__ == "__main__":
    main()
