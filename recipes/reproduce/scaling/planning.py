"""Plan what to do with SmolLM2-135M, 2T tokens behind it, and a budget for its 360M sibling.

python recipes/reproduce/scaling/planning.py
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from hf_warmscale import plan
from hf_warmscale.checkpoints import write_json
from hf_warmscale.report import print_table

RESULTS = Path(__file__).parent / "results"
TOKENS = 5e9


def smollm2(hidden_size: int, layers: int, heads: int) -> LlamaConfig:
    """Return the sizes of a SmolLM2."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


def main() -> None:
    """Make three plans and store them."""
    small, large = smollm2(576, 30, 9), smollm2(960, 32, 15)
    cases: dict[str, dict[str, Any]] = {
        "5B tokens, the base has 2T behind it": {"tokens": TOKENS, "candidates": [(small, 2e12)]},
        "the same compute for every option": {"flops": 1.3e19, "candidates": [(small, 2e12)]},
        "1T tokens, the base has 10B behind it": {"tokens": 1e12, "candidates": [(small, 1e10)]},
    }
    stored = {}
    for title, case in cases.items():
        begin = time.perf_counter()
        found = plan(target=large, **case)
        seconds = time.perf_counter() - begin
        print_table(found.table(), title=title)
        for line in found.assumptions:
            print(f"Assumed: {line}")
        print(*(asdict(each) for each in found.break_even), sep="\n")
        print(f"Advice:  {found.advice}\n({seconds:.2f} s)\n")
        stored[title] = {**found.to_dict(), "seconds": seconds}
    write_json(RESULTS / "plans.json", stored)


if __name__ == "__main__":
    main()
