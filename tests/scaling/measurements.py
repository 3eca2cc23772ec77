"""Losses to fit: synthetic ones of a known law, and public ones where they are at hand."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

VARIABLE = "WARMSCALE_DATA"

TRUE = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
TRANSFER = {"k": 0.4, "p": 0.95, "q": 1.5}

SIZES, RATIOS = (1e7, 2e7, 4e7, 8e7, 1.6e8), (5.0, 10.0, 20.0, 40.0)

NANOLM_N = np.array([8.53, 21.56, 39.09, 61.12, 87.65, 118.68, 154.21, 194.24, 676.48, 1446.72]) * 1e6
NANOLM_LOSS = np.array([3.9181, 3.6054, 3.4431, 3.3542, 3.2902, 3.2478, 3.224, 3.1797, 3.0854, 3.0425])
"""Losses of muP widths at 20,000 steps (2304.06875)."""


def true_loss(n: Any, d: Any) -> Any:
    return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


def ladder(*, noise: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Five sizes at four budgets each."""
    n, ratio = (grid.ravel() for grid in np.meshgrid(SIZES, RATIOS, indexing="ij"))
    off = noise * np.random.default_rng(seed).standard_normal(n.size)
    return {"N": n, "D": n * ratio, "loss": true_loss(n, n * ratio) + off}


def grown_ladder() -> dict[str, Any]:
    """The ladder, and models grown by three factors from bases of four budgets."""
    rows = ladder()
    n, d, d0, n0 = (np.array(column) for column in zip(*_grown(), strict=True))
    effective = d + TRANSFER["k"] * d0 ** TRANSFER["p"] * (n / n0) ** -TRANSFER["q"]
    zeros = np.zeros(len(rows["N"]))
    return {
        "N": np.concatenate([rows["N"], n]),
        "D": np.concatenate([rows["D"], d]),
        "loss": np.concatenate([rows["loss"], true_loss(n, effective)]),
        "D0": np.concatenate([zeros, d0]),
        "N0": np.concatenate([zeros, n0]),
    }


def _grown() -> list[tuple[float, float, float, float]]:
    return [
        (base * factor, base * factor * ratio, base * before, base)
        for base in (1e7, 4e7)
        for factor in (2.0, 4.0)
        for before in (5.0, 20.0, 80.0)
        for ratio in (5.0, 20.0)
    ]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the public loss measurements."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} does not name the folder of the public loss measurements")
    return Path(folder)


def chinchilla(data: Path) -> list[dict[str, float]]:
    """The 240 points of 2404.10102: the five highest losses are dropped."""
    with (data / "chinchilla_svg_extracted.csv").open() as file:
        rows = [
            {
                "N": float(row["Model Size"]),
                "D": float(row["Training FLOP"]) / (6 * float(row["Model Size"])),
                "loss": float(row["loss"]),
            }
            for row in csv.DictReader(file)
        ]
    return sorted(rows, key=lambda row: row["loss"])[:-5]


def gemstones(data: Path) -> list[dict[str, Any]]:
    """The cooled ends of the Gemstones."""
    lines = (data / "gemstones_cooldown_end.jsonl").read_text().splitlines()
    return [
        {
            "N": row["params_active_precise"],
            "D": row["tokens"],
            "loss": row["final_loss"],
            "run": row["run_name"],
        }
        for row in map(json.loads, lines)
    ]
