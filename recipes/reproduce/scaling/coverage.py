"""How often the truth lies in the 95 % interval: synthetic ladders of 5 sizes x 4 budgets, noise of 0.01 nats.

    python recipes/reproduce/scaling/coverage.py [--draws 100] [--bootstrap 100]

Two truths at 2 and 4 times the largest size and 20 tokens per parameter: the loss of a new run, noise included, which
the interval is for, and the law itself.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hf_warmscale import fit_scaling_law
from hf_warmscale.checkpoints import write_json
from hf_warmscale.report import print_table

RESULTS = Path(__file__).parent / "results"
SIZES, RATIOS, NOISE = (1e7, 2e7, 4e7, 8e7, 1.6e8), (5.0, 10.0, 20.0, 40.0), 0.01
WANTED = {"2 times": 3.2e8, "4 times": 6.4e8}


def main() -> None:
    """Draw, fit, count, and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--bootstrap", type=int, default=100)
    arguments = parser.parse_args()
    found = [one(seed, arguments.bootstrap) for seed in range(arguments.draws)]
    rows = [
        {
            "interval": method,
            "at": name,
            "a new run inside": sum(draw[method][name]["run"] for draw in found),
            "the law inside": sum(draw[method][name]["law"] for draw in found),
            "of": len(found),
            "mean width, nats": float(np.mean([draw[method][name]["width"] for draw in found])),
        }
        for method in found[0]
        for name in WANTED
    ]
    print_table(rows)
    write_json(RESULTS / "coverage.json", {"bootstrap": arguments.bootstrap, "rows": rows})


def truth(n: Any, d: Any) -> Any:
    """Return the loss of the law that makes the points."""
    return 1.8 + 480 / n**0.35 + 2100 / d**0.37


def one(seed: int, bootstrap: int) -> dict[str, dict[str, dict[str, float]]]:
    """Fit one synthetic ladder and look where the truth lies."""
    generator = np.random.default_rng(seed)
    n, ratio = (grid.ravel() for grid in np.meshgrid(SIZES, RATIOS, indexing="ij"))
    rows = {"N": n, "D": n * ratio, "loss": truth(n, n * ratio) + NOISE * generator.standard_normal(n.size)}
    new = {name: truth(size, 20 * size) + NOISE * generator.standard_normal() for name, size in WANTED.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, draws in (("resampled runs", bootstrap), ("delta method", 0)):
        law = fit_scaling_law(rows, bootstrap=draws, seed=seed)
        found[method] = {}
        for name, size in WANTED.items():
            low, high = law.interval(N=size, D=20 * size)
            found[method][name] = {
                "run": float(low <= new[name] <= high),
                "law": float(low <= truth(size, 20 * size) <= high),
                "width": high - low,
            }
    return found


if __name__ == "__main__":
    main()
