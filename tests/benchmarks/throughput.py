"""Throughput of `ContinualTrainer` beside `Trainer` on the same model and rows: pairs of runs in turn.

    python tests/benchmarks/throughput.py [--pairs 9] [--steps 30]

`plain` has neither stage nor mixture; `stage` has a mixture of two sources and reports losses by source, and its
`Trainer` gets the same rows in the same order. Packed rows carry `position_ids`, and both get the packed collator.
Time is the median processor time of a step after the second: other work on the machine takes none of it, and disturbs
few of the steps through the cache. Prints every ratio and the medians.
"""

import argparse
import os
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage
from hf_warmscale.training.data.batches import collate_packed

VOCAB, LENGTH, BATCH = 1024, 256, 8
CASES = ("plain", "plain packed", "stage", "stage packed")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for case in CASES:
        measure(case, 3)  # warm up
        ratios = []
        for pair in range(arguments.pairs):
            order = (False, True) if pair % 2 else (True, False)
            seconds = {ours: measure(case, arguments.steps, ours=ours) for ours in order}
            ratios.append(seconds[False] / seconds[True])
        listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{case}: median {median(ratios):.4f} of Trainer's throughput ({listed})", flush=True)


def measure(case: str, steps: int, *, ours: bool = True) -> float:
    """Return the processor seconds of an optimizer step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        use_cache=False,
    )  # fmt: skip
    content = rows("packed" in case, steps * BATCH)
    collator = collate_packed if "packed" in case else None
    with TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": str(Path(folder) / "run"), "per_device_train_batch_size": BATCH, "learning_rate": 1e-3,
            "save_strategy": "no", "logging_steps": 10, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        trainer = make(case, LlamaForCausalLM(config), settings, content, collator, steps, ours)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        return median(later - earlier for earlier, later in pairwise(clock.times[1:]))


class Clock(TrainerCallback):
    """Note the processor time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note it."""
        self.times.append(time.process_time())


def make(
    case: str,
    model: LlamaForCausalLM,
    settings: dict[str, Any],
    content: list[dict[str, torch.Tensor]],
    collator: Any,
    steps: int,
    ours: bool,
) -> Trainer:
    """Return one trainer of a pair."""
    if ours and case.startswith("stage"):
        half = len(content) // 2
        mixture = ReplayMixture({"new": content[:half], "old": content[half:]}, [0.9, 0.1])
        stage = Stage("measured", "constant", mixture, max_steps=steps)
        return ContinualTrainer(model, ContinualTrainingArguments(**settings), collator, stage=stage)
    settings |= {"max_steps": steps}
    if ours:
        return ContinualTrainer(model, ContinualTrainingArguments(**settings), collator, train_dataset=content)
    return Trainer(model, TrainingArguments(**settings), collator, train_dataset=content)


def rows(packed: bool, count: int) -> list[dict[str, torch.Tensor]]:
    """Return random rows; packed ones hold four documents."""
    tokens = torch.randint(VOCAB, (count, LENGTH))
    positions = torch.arange(LENGTH) % (LENGTH // 4)
    labels = torch.where(positions == 0, -100, tokens)
    if packed:
        return [{"input_ids": t, "position_ids": positions, "labels": n} for t, n in zip(tokens, labels, strict=True)]
    return [{"input_ids": t, "labels": t} for t in tokens]


if __name__ == "__main__":
    main()
