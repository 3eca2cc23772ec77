"""Do the merge methods agree with mergekit 0.1.5 on the same inputs?

    python -m venv MERGEKIT && MERGEKIT/bin/pip install mergekit==0.1.5
    python recipes/reproduce/merging/mergekit_agreement.py --python MERGEKIT/bin/python [--models SMOLLM2]

Without `--models` the inputs are random tensors of odd shapes; with it the first block and the last norm of the models
that `smollm2.py` wrote. Conventions are set alike: no normalisation but where the method has one, DARE rescales by the
L1 norm and gets the masks that mergekit drew. Prints the largest difference in float32, how many entries differ by
more than 1e-6, and the largest difference when both get the same inputs in float64.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.merging.methods import drop_and_rescale, linear, model_stock, slerp, task_arithmetic, ties
from hf_warmscale.report import markdown_table

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
    single = compare(arguments.python, arguments.models, torch.float32)
    double = compare(arguments.python, arguments.models, torch.float64)
    rows = [
        {
            "method": name,
            "entries": one["entries"],
            "float32": one["largest"],
            "beyond 1e-6": one["beyond"],
            "float64": two["largest"],
            "beyond 1e-6 in float64": two["beyond"],
        }
        for (name, one), two in zip(single.items(), double.values(), strict=True)
    ]
    print(markdown_table(rows))


def compare(python: Path, models: Path | None, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Merge the same tensors with both, method by method."""
    inputs = random_inputs() if models is None else model_inputs(models)
    inputs = [{name: tensor.to(dtype) for name, tensor in tensors.items()} for tensors in inputs]
    cases = {name: {"models": 3, "seed": 0, **case} for name, case in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "inputs").mkdir()
        for index, tensors in enumerate(inputs):
            save_file(tensors, work / "inputs" / f"{index}.safetensors")
        (work / "cases.json").write_text(json.dumps(cases))
        command = [python, HERE / "mergekit_reference.py", "merge", work / "cases.json", work / "inputs", work / "out"]
        subprocess.run(command, check=True)
        masks = load_file(work / "out" / "dare.masks")
        return {
            name: difference(name, inputs, load_file(work / "out" / f"{name}.safetensors"), masks) for name in cases
        }


def difference(
    name: str, inputs: Sequence[Mapping[str, Tensor]], theirs: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the largest difference of one method over all tensors."""
    base, *models = inputs
    largest, beyond = 0.0, 0
    for tensor in base:
        ours = merge(name, base[tensor], [model[tensor] for model in models], lambda i, t=tensor: masks[f"{t}/{i}"])  # type: ignore[misc]
        apart = (ours - theirs[tensor]).abs()
        largest = max(largest, float(apart.max()))
        beyond += int((apart > TOLERANCE).sum())
    return {"entries": sum(tensor.numel() for tensor in base.values()), "largest": largest, "beyond": beyond}


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
