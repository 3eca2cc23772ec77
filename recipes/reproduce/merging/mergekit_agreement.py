"""Do the merge methods agree with mergekit 0.1.5 on the same inputs?

    python -m venv MERGEKIT && MERGEKIT/bin/pip install mergekit==0.1.5
    python recipes/reproduce/merging/mergekit_agreement.py --python MERGEKIT/bin/python [--models SMOLLM2]

Without `--models` the inputs are random tensors of odd shapes; with it the first block and the last norm of the models
that `smollm2.py` wrote. Conventions are set alike: no normalisation but where the method has one, DARE rescales by the
L1 norm and gets the masks that mergekit drew. Prints the largest difference and how many entries differ by more than
1e-6, in float32, in float64, and of our float32 from mergekit's float64, which tells whose rounding a difference is.
Of TIES it counts how many of the entries beyond 1e-6 are tied with another at the threshold. All of it is stored in
`results/mergekit`.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.merging.methods import drop_and_rescale, linear, model_stock, slerp, task_arithmetic, ties
from hf_warmscale.report import markdown_table
from hf_warmscale.studies import write_result

Tensors = Mapping[str, Tensor]

HERE = Path(__file__).parent
WEIGHTS = [0.2, 0.3, 0.5]
DENSITY = 0.4
TOLERANCE = 1e-6

CASES: Mapping[str, dict[str, Any]] = {
    "linear": {"method": "linear", "base": False, "parameters": {"weight": WEIGHTS}},
    "slerp": {"method": "slerp", "base": False, "models": 2, "parameters": {"t": 0.3}},
    "task_arithmetic": {"method": "task_arithmetic", "base": True, "parameters": {"weight": WEIGHTS}},
    "ties": {"method": "ties", "base": True, "parameters": {"weight": WEIGHTS, "density": DENSITY}},
    "dare": {"method": "dare_linear", "base": True, "parameters": {"weight": WEIGHTS, "density": DENSITY}},
    "model_stock": {"method": "model_stock", "base": True, "parameters": {}},
}


def main() -> None:
    """Parse the arguments, merge with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of the environment that has mergekit")
    parser.add_argument("--models", type=Path, help="the folder that smollm2.py wrote")
    arguments = parser.parse_args()
    inputs = random_inputs() if arguments.models is None else model_inputs(arguments.models)
    single = both(arguments.python, inputs, torch.float32)
    double = both(arguments.python, inputs, torch.float64)
    rows = [
        {
            "method": name,
            "entries": sum(tensor.numel() for tensor in single.ours[name].values()),
            "float32": largest(single.ours[name], single.theirs[name]),
            "beyond 1e-6": beyond(single.ours[name], single.theirs[name]),
            "float64": largest(double.ours[name], double.theirs[name]),
            "beyond 1e-6 in float64": beyond(double.ours[name], double.theirs[name]),
            "ours in float32 from theirs in float64": largest(single.ours[name], double.theirs[name]),
        }
        for name in CASES
    ]
    print(markdown_table(rows))
    ties_apart = {}
    for merged, dtype in ((single, "float32"), (double, "float64")):
        tied, total = tied_at_a_threshold(inputs, merged)
        ties_apart[dtype] = {"tied at the threshold": tied, "beyond 1e-6": total}
        print(f"ties in {dtype}: entries beyond 1e-6 that are tied with another at the threshold: {tied} of {total}")
    name = "agreement-random" if arguments.models is None else "agreement-smollm2"
    write_result(HERE / "results" / "mergekit" / f"{name}.json", {"rows": rows, "ties": ties_apart}, code=HERE)


@dataclass(frozen=True)
class Merged:
    """The same inputs merged by this package and by mergekit: method -> tensor name -> merged tensor."""

    ours: Mapping[str, Tensors]
    theirs: Mapping[str, Tensors]


def both(python: Path, inputs: Sequence[Tensors], dtype: torch.dtype) -> Merged:
    """Merge the same tensors with both, method by method."""
    inputs = [{name: tensor.to(dtype) for name, tensor in tensors.items()} for tensors in inputs]
    base, *models = inputs
    cases = {name: {"models": 3, "seed": 0, **case} for name, case in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "inputs").mkdir()
        for index, tensors in enumerate(inputs):
            save_file(dict(tensors), work / "inputs" / f"{index}.safetensors")
        (work / "cases.json").write_text(json.dumps(cases))
        command: list[str | Path] = [
            python,
            HERE / "mergekit_reference.py",
            "merge",
            work / "cases.json",
            work / "inputs",
            work / "out",
        ]
        subprocess.run(command, check=True)
        masks = load_file(work / "out" / "dare.masks")
        theirs = {name: load_file(work / "out" / f"{name}.safetensors") for name in cases}
    ours = {
        method: {
            name: merge(method, base[name], [model[name] for model in models], lambda i, t=name: masks[f"{t}/{i}"])  # type: ignore[misc]
            for name in base
        }
        for method in cases
    }
    return Merged(ours, theirs)


def largest(ours: Tensors, theirs: Tensors) -> float:
    """Return the largest difference of an entry."""
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def beyond(ours: Tensors, theirs: Tensors) -> int:
    """Return how many entries differ by more than the tolerance."""
    return sum(int(((ours[name] - theirs[name]).abs() > TOLERANCE).sum()) for name in ours)


def tied_at_a_threshold(inputs: Sequence[Tensors], merged: Merged) -> tuple[int, int]:
    """Return how many of the entries in which TIES differs are tied at a threshold, and how many differ.

    Tied: in one of the differences from the base the entry has the smallest magnitude that stays, and so has another.
    """
    base, *models = inputs
    found = total = 0
    for name, ours in merged.ours["ties"].items():
        apart = ((ours - merged.theirs["ties"][name]).abs() > TOLERANCE).flatten()
        tied = torch.zeros_like(apart)
        for model in models if apart.any() else ():
            magnitude = (model[name] - base[name]).abs().flatten()
            smallest = magnitude.sort(descending=True).values[max(1, int(DENSITY * len(magnitude))) - 1]
            if int((magnitude == smallest).sum()) > 1:
                tied |= magnitude == smallest
        found, total = found + int((apart & tied).sum()), total + int(apart.sum())
    return found, total


def merge(name: str, base: Tensor, tensors: list[Tensor], mask: Callable[[int], Tensor]) -> Tensor:
    """Merge with this package."""
    if name == "linear":
        return linear(tensors, WEIGHTS)
    if name == "slerp":
        return slerp(tensors[0], tensors[1], 0.3)
    if name == "task_arithmetic":
        return task_arithmetic(base, tensors, WEIGHTS)
    if name == "ties":
        return ties(base, tensors, WEIGHTS, density=DENSITY)
    if name == "model_stock":
        return model_stock(base, tensors)
    deltas = [tensor - base for tensor in tensors]
    kept = [drop_and_rescale(each, mask(i), density=DENSITY, rescale="l1") for i, each in enumerate(deltas)]
    return task_arithmetic(base, [base + each for each in kept], WEIGHTS)


def random_inputs() -> list[dict[str, Tensor]]:
    """Return a base and three models whose differences share a part."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (67, 129), "vector": (31,), "tall": (513, 3), "batch": (4, 5, 6)}

    def draw(scale: float) -> dict[str, Tensor]:
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    base, shared = draw(0.5), draw(0.1)
    own = [draw(0.1) for _ in range(3)]
    return [base, *({name: base[name] + shared[name] + each[name] for name in shapes} for each in own)]


def model_inputs(models: Path) -> list[dict[str, Tensor]]:
    """Return tensors of the base and of its copies."""
    opened = [open_checkpoint(folder) for folder in (models / "base", *sorted(models.glob("copy-*")))]
    names = [name for name in opened[0].specs if ".layers.0." in name or name == "model.norm.weight"]
    return [{name: checkpoint.tensor(name).clone() for name in names} for checkpoint in opened]


if __name__ == "__main__":
    main()
