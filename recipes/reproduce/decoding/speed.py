"""Measure tokens per second on the CPU: plain emulated fine-tuning against its members, and speculative decoding.

    python recipes/reproduce/decoding/speed.py --corpora CORPORA --work WORK

All that is compared is alternated in one process: a round times each of them once. Reported are medians over the
rounds, and ratios within a round. Seconds are those that the process had the processor (one thread), so that others on
the machine do not count. Writes `results/agreement.json` and `results/speed.json`.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from torch import Tensor
from train import HERE, RESULTS, STUDY
from transformers import PreTrainedModel
from trend import load, members, windows

from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from hf_warmscale.decoding.speculation import measure_block_length, set_block_length
from hf_warmscale.studies import write_result


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of <domain>.<split>.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    parser.add_argument("--domain", default="python")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, default=1.0, help="weight of large minus small")
    parser.add_argument("--prompts", type=int, help="default: of the study")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json")
    parser.add_argument("--timing-only", action="store_true", help="skip the comparison of drafted and plain text")
    arguments = parser.parse_args()
    design = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    names = members(arguments.domain, arguments.seed)
    large, tuned, small = (load(arguments.work, names[role]) for role in ("large", "small_tuned", "small"))
    emulated = EmulatedFineTuningForCausalLM(large, tuned, small, beta=arguments.beta)
    settings = design["speed"]
    tokens = windows(design, arguments.corpora, arguments.work, arguments.domain).tokens
    prompts = list(tokens[:200, : settings["prompt_tokens"]].split(1))
    if not arguments.timing_only:
        agreement = greedy_agreement(emulated, tuned, prompts)
        print("assisted greedy equals plain greedy:", agreement, flush=True)
        write_result(RESULTS / "agreement.json", agreement, code=HERE)
    result = compare(emulated, large, tuned, small, prompts[: arguments.prompts or settings["prompts"]], settings)
    write_result(arguments.output, result | {"beta": arguments.beta}, code=HERE)
    print({name: value for name, value in result.items() if name != "rounds"})


def greedy_agreement(emulated: PreTrainedModel, tuned: PreTrainedModel, prompts: list[Tensor]) -> dict[str, int]:
    """Return of how many prompts the drafted greedy continuation of 8 tokens is the plain one, by block length."""
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    plain = emulated.generate(torch.cat(prompts), **options)  # type: ignore[operator]
    equal = {}
    for length in (1, 4, 8):
        set_block_length(tuned, length)
        drafted = [emulated.generate(prompt, assistant_model=tuned, **options) for prompt in prompts]  # type: ignore[operator]
        equal[str(length)] = sum(bool((one[0] == two).all()) for one, two in zip(drafted, plain, strict=True))
    return {"prompts": len(prompts), **equal}


def compare(
    emulated: EmulatedFineTuningForCausalLM,
    large: PreTrainedModel,
    tuned: PreTrainedModel,
    small: PreTrainedModel,
    prompts: list[Tensor],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Alternate everything that is compared; return the rounds and what follows from them."""
    new = settings["new_tokens"]
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": True,
        "top_k": 0,
        "clock": time.process_time,
    }
    alone = {"large": large, "tuned": tuned, "reference": small}
    rounds = []
    for number in range(settings["pairs"] + 1):
        row: dict[str, Any] = {name: decode_seconds(model, prompts, new) for name, model in alone.items()}
        row["plain_forward"] = decode_seconds(emulated, prompts, new)
        for length in settings["block_lengths"]:
            row[f"check_{length}"] = decode_seconds(emulated, prompts, new // 4, block=length + 1)
        torch.manual_seed(number)
        row["plain"] = measure_block_length(emulated, tuned, prompts, 0, **options).tokens_per_second
        for length in settings["block_lengths"]:
            torch.manual_seed(number)
            measured = measure_block_length(emulated, tuned, prompts, length, **options)
            row[f"speculative_{length}"] = measured.tokens_per_second
            row[f"accepted_{length}"] = measured.accepted
            row[f"per_pass_{length}"] = new * len(prompts) / measured.passes
        if number:  # the first round warms up
            rounds.append(row)
            print({name: round(value, 5) for name, value in row.items()}, flush=True)
    return {"rounds": rounds, **summary(rounds, settings["block_lengths"])}


@torch.no_grad()
def decode_seconds(model: PreTrainedModel, prompts: list[Tensor], steps: int, block: int = 1) -> float:
    """Return the seconds of one forward pass over `block` new tokens with a cache, the mean of many."""
    run: Callable[..., Any] = model
    seconds = 0.0
    for prompt in prompts:
        output = run(input_ids=prompt, use_cache=True)
        cache, tokens = output.cache, prompt[:, :1].repeat(1, block)
        started = time.process_time()
        for _ in range(steps):
            run(input_ids=tokens, cache=cache, use_cache=True)
        seconds += time.process_time() - started
    return seconds / (steps * len(prompts))


def summary(rounds: list[dict[str, Any]], lengths: list[int]) -> dict[str, Any]:
    """Return the medians of the ratios within a round."""

    def middle(ratio: Callable[[dict[str, Any]], float]) -> float:
        return median(ratio(row) for row in rounds)

    def predicted(row: dict[str, Any], length: int) -> float:
        """Speed-up over plain decoding that the tokens per pass and the times of the forward passes allow."""
        seconds: float = length * row["tuned"] + row[f"check_{length}"]
        return float(row[f"per_pass_{length}"] * row["plain_forward"] / seconds)

    blocks = [
        {
            "block_length": length,
            "accepted": middle(lambda row, n=length: row[f"accepted_{n}"]),  # type: ignore[misc]
            "tokens_per_second": middle(lambda row, n=length: row[f"speculative_{n}"]),  # type: ignore[misc]
            "speedup": middle(lambda row, n=length: row[f"speculative_{n}"] / row["plain"]),  # type: ignore[misc]
            "predicted_speedup": middle(lambda row, n=length: predicted(row, n)),  # type: ignore[misc]
        }
        for length in lengths
    ]
    return {
        "forward_time_ratio": middle(lambda row: row["large"] / row["tuned"]),
        "plain_over_sum_of_members": middle(
            lambda row: row["plain_forward"] / (row["large"] + row["tuned"] + row["reference"])
        ),
        "plain_tokens_per_second": middle(lambda row: row["plain"]),
        "blocks": blocks,
    }


if __name__ == "__main__":
    main()
