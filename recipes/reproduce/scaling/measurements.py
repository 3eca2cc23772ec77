"""Read the public loss measurements, and the ten points of nanoLM."""

import csv
import json
import math
from pathlib import Path
from typing import Any

NANOLM = {
    "N": [value * 1e6 for value in (8.53, 21.56, 39.09, 61.12, 87.65, 118.68, 154.21, 194.24, 676.48, 1446.72)],
    "loss": [3.9181, 3.6054, 3.4431, 3.3542, 3.2902, 3.2478, 3.224, 3.1797, 3.0854, 3.0425],
}
"""Losses of muP widths 128 to 3072 after 20,000 steps on the same data in the same order (2304.06875)."""

OPT_SIZES = {"125m": 125e6, "1.3b": 1.3e9, "6.7b": 6.7e9, "13b": 13e9, "30b": 30e9, "175b": 175e9}

Rows = list[dict[str, Any]]


def chinchilla(folder: Path) -> Rows:
    """Return the 240 points of 2404.10102: 245 read off a figure, without the five highest losses."""
    rows = [
        {
            "N": float(row["Model Size"]),
            "D": float(row["Training FLOP"]) / (6 * float(row["Model Size"])),
            "loss": float(row["loss"]),
        }
        for row in _csv(folder / "chinchilla_svg_extracted.csv")
    ]
    return sorted(rows, key=lambda row: float(row["loss"]))[:-5]


def gemstones(folder: Path) -> Rows:
    """Return the cooled ends of the Gemstones, models of many widths and depths."""
    lines = (folder / "gemstones_cooldown_end.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            "N": row["params_active_precise"],
            "D": row["tokens"],
            "loss": row["final_loss"],
            "run": row["run_name"],
        }
        for row in map(json.loads, lines)
    ]


def kyo_takano(folder: Path) -> Rows:
    """Return 234 runs of Chinchilla's figure, as another repository extracted them."""
    return [{name: row[name] for name in ("N", "D", "loss")} for row in _csv(folder / "kyo_takano_llm.csv")]


def opt_trajectories(folder: Path) -> Rows:
    """Return the losses of six OPT models along their training: uncooled, correlated within a model."""
    return [
        {
            "N": OPT_SIZES[row["model_size"]],
            "D": 10 ** float(row["num_token"]),
            "loss": math.log(float(row["ppl"])),
            "run": row["model_size"],
        }
        for row in _csv(folder / "colpret_opt_trajectories.csv")
    ]


FILES = {
    "chinchilla_svg_extracted": chinchilla,
    "gemstones_cooldown_end": gemstones,
    "kyo_takano_llm": kyo_takano,
    "colpret_opt_trajectories": opt_trajectories,
}


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
