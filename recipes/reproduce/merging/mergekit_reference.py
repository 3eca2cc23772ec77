"""Merge with mergekit 0.1.5, in an environment of its own; started by `mergekit_agreement.py` and `mergekit_cost.py`.

python mergekit_reference.py merge CASES.json INPUTS OUTPUT    (the methods on every tensor, and the masks of DARE)
python mergekit_reference.py cost INPUTS                       (CPU seconds of its in-process merges, one a line)
"""

import json
import sys
import time
from pathlib import Path

import torch
from mergekit import sparsify
from mergekit.merge_methods import merge_state_dicts, merge_tensors
from safetensors.torch import load_file, save_file


def merge(cases: Path, inputs: Path, output: Path) -> None:
    """Merge the tensors of `inputs/*.safetensors` by every case; a base comes first."""
    base, *models = (load_file(path) for path in sorted(inputs.glob("*.safetensors")))
    output.mkdir(parents=True, exist_ok=True)
    for name, case in json.loads(cases.read_text()).items():
        merged, masks = {}, {}
        for tensor in base:
            torch.manual_seed(case["seed"])
            used = [model[tensor] for model in models[: case["models"]]]
            if case["base"]:
                used.insert(0, base[tensor])
            with recorded_masks() as drawn:
                merged[tensor] = merge_tensors(
                    used,
                    case["method"],
                    parameters=case["parameters"],
                    base_index=0 if case["base"] or case["method"] == "slerp" else None,
                )
            masks |= {f"{tensor}/{index}": mask for index, mask in enumerate(drawn)}
        save_file(merged, output / f"{name}.safetensors")
        if masks:
            save_file(masks, output / f"{name}.masks")


class recorded_masks:
    """What mergekit multiplies differences with, while the block runs."""

    def __enter__(self) -> list[torch.Tensor]:
        self.masks: list[torch.Tensor] = []
        self.original = sparsify.rescaled_masked_tensor

        def record(tensor, mask, *rest, **options):
            self.masks.append(mask.bool().clone())
            return self.original(tensor, mask, *rest, **options)

        sparsify.rescaled_masked_tensor = record
        return self.masks

    def __exit__(self, *error: object) -> None:
        sparsify.rescaled_masked_tensor = self.original


def cost(inputs: list[Path]) -> None:
    """Answer every line of the standard input with the CPU seconds of one linear merge in memory."""
    torch.set_num_threads(1)
    states = [load_file(path) for path in inputs]
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        with torch.no_grad():
            merge_state_dicts(states, "linear", parameters={"weight": [0.2, 0.3, 0.5]})
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "merge":
        merge(*map(Path, sys.argv[2:]))
    else:
        cost([Path(path) for path in sys.argv[2:]])
