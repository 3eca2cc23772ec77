"""Show how evenly the routers of a mixture of experts spread the tokens of a text.

    python recipes/moe/load.py tiny/experts-continued/checkpoint-60 tiny/code-held-out.jsonl

Prints the share of the busiest and of the idlest expert of each block, and the balance loss over all blocks: if the
load is even, it is the number of experts per token, else more.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

DOCUMENTS, TOKENS = 32, 256


def main() -> None:
    """Route documents one by one and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a mixture of experts")
    parser.add_argument("documents", help='a file with one {"text": ...} in each line')
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    lines = Path(arguments.documents).read_text("utf-8").splitlines()[:DOCUMENTS]
    tokens = [tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids[:, :TOKENS] for line in lines]
    with torch.no_grad():
        routed = [model(input_ids=ids, output_router_logits=True).router_logits for ids in tokens]
    # By block, `[tokens, experts]`.
    blocks = tuple(torch.cat(logits) for logits in zip(*routed, strict=True))
    experts, chosen = blocks[0].shape[-1], model.config.num_experts_per_tok
    for number, logits in enumerate(blocks):
        counts = torch.bincount(logits.topk(chosen).indices.flatten(), minlength=experts)
        shares = counts / counts.sum()
        print(
            f"block {number}: busiest {shares.max():.0%}, idlest {shares.min():.0%} of {counts.sum() // chosen} tokens"
        )
    print(f"balance loss {load_balancing_loss_func(blocks, experts, chosen):.3f}; {chosen} if the load is even")


if __name__ == "__main__":
    main()
