"""Throughput of `ContinualTrainer` beside `Trainer` on the same model and rows: pairs of runs in turn.

    python tests/benchmarks/throughput.py [--pairs 9] [--steps 12] [--vocabularies 1024 49152 151936] [--memory]

`idle` has neither stage nor mixture; `stage` has a mixture of two sources and reports losses by source, and its
`Trainer` gets the same rows in the same order. Packed rows carry `position_ids`, and both get the packed collator.
Time is the median processor time of a step after the second: other work on the machine takes none of it, and disturbs
few of the steps through the cache. Prints every ratio and the medians. With `--memory`, the peak memory of one process
per trainer instead.
"""

import argparse
import os
import resource
import subprocess
import sys
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
from hf_warmscale.training.data.collators import collate_packed

VOCABULARIES = (1024, 49152, 151936)
CASES = ("idle", "stage", "stage packed")
TOKENS = {1024: (8, 256), 49152: (4, 128), 151936: (2, 128)}
"""Rows and tokens in a row of a step, by vocabulary: with a large one the head and the loss are most of the step."""


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, choices=VOCABULARIES)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--once", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for vocabulary in arguments.vocabularies:
        for case in arguments.cases:
            if arguments.once:
                measure(case, vocabulary, arguments.steps, ours=arguments.once == "ours")
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            elif arguments.memory:
                compare_memory(case, vocabulary, arguments.steps)
            else:
                compare_time(case, vocabulary, arguments.steps, arguments.pairs)


def compare_time(case: str, vocabulary: int, steps: int, pairs: int) -> None:
    """Print the throughput of a stage as a share of Trainer's, pair by pair."""
    measure(case, vocabulary, 3)  # warm up
    ratios = []
    for pair in range(pairs):
        order = (False, True) if pair % 2 else (True, False)
        seconds = {ours: measure(case, vocabulary, steps, ours=ours) for ours in order}
        ratios.append(seconds[False] / seconds[True])
    listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"{case}, vocabulary {vocabulary:,}: median {median(ratios):.4f} of Trainer's ({listed})", flush=True)


def compare_memory(case: str, vocabulary: int, steps: int) -> None:
    """Print the peak memory of both, each in a process of its own."""
    peaks = {}
    for kind in ("theirs", "ours"):
        command = [sys.executable, __file__, "--once", kind, "--steps", str(steps), "--cases", case]
        done = subprocess.run(
            [*command, "--vocabularies", str(vocabulary)], capture_output=True, text=True, check=True
        )
        peaks[kind] = int(done.stdout.split()[-1]) / 1024
    ratio = peaks["ours"] / peaks["theirs"]
    print(f"{case}, vocabulary {vocabulary:,}: {peaks['ours']:.0f} MB, Trainer {peaks['theirs']:.0f} MB, {ratio:.4f}")


def measure(case: str, vocabulary: int, steps: int, *, ours: bool = True) -> float:
    """Return the processor seconds of an optimizer step."""
    torch.manual_seed(0)
    batch, length = TOKENS[vocabulary]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        use_cache=False,
    )  # fmt: skip
    content = rows("packed" in case, steps * batch, length, vocabulary)
    collator = collate_packed if "packed" in case else None
    with TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": str(Path(folder) / "run"), "per_device_train_batch_size": batch, "learning_rate": 1e-3,
            "save_strategy": "no", "logging_steps": 10, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
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
    settings |= {"max_steps": steps, "train_sampling_strategy": "sequential"}
    if ours:
        return ContinualTrainer(model, ContinualTrainingArguments(**settings), collator, train_dataset=content)
    return Trainer(model, TrainingArguments(**settings), collator, train_dataset=content)


def rows(packed: bool, count: int, length: int, vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Return random rows; packed ones hold four documents."""
    tokens = torch.randint(vocabulary, (count, length))
    positions = torch.arange(length) % (length // 4)
    labels = torch.where(positions == 0, -100, tokens)
    if packed:
        return [{"input_ids": t, "position_ids": positions, "labels": n} for t, n in zip(tokens, labels, strict=True)]
    return [{"input_ids": t, "labels": t} for t in tokens]


if __name__ == "__main__":
    main()
