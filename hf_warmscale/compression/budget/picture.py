"""The picture of a search over sizes."""

import os
from collections.abc import Mapping
from typing import Any

from hf_warmscale.report import figure

COLOURS = {"searched": "tab:blue", "plain cut": "tab:gray"}
HEALED = "finalist, healed briefly"


def draw_budget_search(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Draw the loss of every candidate against its parameters, and the judged ones with their intervals.

    Args:
        path (`str` or `PathLike`): the PNG to write.
        record (`Mapping[str, Any]`): the record of the search, as `budget_search.json` holds it.
    """
    judged = sorted(record["judged"], key=lambda row: -float(row["report"]["nll"]))
    with figure(path, size=(10.0, 4.2)) as drawing:
        left, right = drawing.subplots(1, 2)
        for kind, colour in COLOURS.items():
            rows = [row for row in record["candidates"] if _kind(row) == kind]
            if rows:
                left.scatter(
                    [row["parameters"] / 1e6 for row in rows], [row["nll"] for row in rows], c=colour, label=kind
                )
        healed = [row for row in record["candidates"] if "healed_nll" in row]
        if healed:
            losses = [row["healed_nll"] for row in healed]
            left.scatter([row["parameters"] / 1e6 for row in healed], losses, c="tab:green", marker="v", label=HEALED)
        front = record["front"]
        left.step([row["parameters"] / 1e6 for row in front], [row["nll"] for row in front], "k", where="post", lw=1)
        left.set(xlabel="million parameters", ylabel="nats per token (documents of the selection)")
        left.set_title("Candidates and their Pareto front", fontsize=10)
        left.legend()
        for place, row in enumerate(judged):
            change = row["report"]["difference"]
            bars = [[change["estimate"] - change["low"]], [change["high"] - change["estimate"]]]
            right.errorbar(change["estimate"], place, xerr=bars, marker="o", capsize=3, color=COLOURS[_kind(row)])
        names = [
            row["how"] if row["how"] != "search" else f"searched, {row['parameters'] / 1e6:.1f} M" for row in judged
        ]
        right.set_yticks(range(len(judged)), names)
        right.axvline(0.0, color="black", lw=0.8)
        right.set_xlabel("nats per token above the winner, both as cut (95 %)")
        right.set_title(_title(record), fontsize=10)


def _kind(row: Mapping[str, Any]) -> str:
    return "searched" if row["how"] == "search" else "plain cut"


def _title(record: Mapping[str, Any]) -> str:
    winner = f"Judged as cut, before any healing\nwinner {record['winner']['report']['nll']:.3f}"
    if record.get("healed") is not None:
        winner += f" (healed {record['healed']['report']['nll']:.3f})"
    return f"{winner}, source {record['source_nll']:.3f}"
