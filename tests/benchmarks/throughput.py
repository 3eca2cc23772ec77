"""Throughput of `ContinualTrainer` beside `Trainer` on the same model and rows.

    python -m tests.benchmarks.throughput [--pairs 9] [--steps 12] [--vocabularies 1024 49152 151936]
    python -m tests.benchmarks.throughput --memory --vocabularies 151936
    python -m tests.benchmarks.throughput --saves

`idle` has neither stage nor mixture; `stage` has a mixture of two sources and reports losses by source, and its
`Trainer` gets the same rows in the same order. Packed rows carry `position_ids`, and both get the packed collator.

Both trainers of a pair run in one process and take turns after every step, so that the two steps that are compared
are neighbours in time, and whatever else the machine does meets both. Time is processor time; a pair gives the median
over its steps of Trainer's time divided by ours. The hidden size is small, so that the loss is a large part of a step.
With `--memory`, the peak memory of one process per trainer instead; with `--saves`, the wall time of 60 checkpoints.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage
from hf_warmscale.training.data.collators import collate_packed
from tests.benchmarks.turns import EndStep, Step, Turns

VOCABULARIES = (1024, 49152, 151936)
CASES = ("idle", "stage", "stage packed")
TOKENS = {1024: (8, 256), 49152: (4, 128), 151936: (2, 128)}
"""Rows and tokens in a row of a step, by vocabulary: with a large one the head and the loss are most of the step."""
SAVES = 60


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--vocabularies", type=int, nargs="*", default=list(VOCABULARIES))
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--saves", action="store_true")
    parser.add_argument("--once", choices=("ours", "theirs"), help="train one of the two and print its peak memory")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.saves:
        compare_saves(arguments.pairs)
        return
    for vocabulary in arguments.vocabularies:
        for case in arguments.cases:
            if arguments.once:
                train(case, vocabulary, arguments.steps, ours=arguments.once == "ours")
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            elif arguments.memory:
                compare_memory(case, vocabulary, arguments.steps)
            else:
                compare_time(case, vocabulary, arguments.steps, arguments.pairs)


def compare_time(case: str, vocabulary: int, steps: int, pairs: int) -> None:
    """Print the throughput of a stage as a share of Trainer's, pair by pair."""
    ratios = [pair(case, vocabulary, steps, first=number % 2) for number in range(pairs)]
    listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"{case}, vocabulary {vocabulary:,}: median {median(ratios):.4f} of Trainer's ({listed})", flush=True)


def pair(case: str, vocabulary: int, steps: int, *, first: int) -> float:
    """Train both, step by step in turn, and return the median of the ratios of neighbouring steps."""
    turns = Turns(2, first)
    turns.run([partial(one_of_a_pair, case, vocabulary, steps, ours) for ours in (False, True)])
    theirs, ours = turns.seconds
    ratio: float = median(one / other for one, other in zip(theirs, ours, strict=True))
    return ratio


def one_of_a_pair(case: str, vocabulary: int, steps: int, ours: bool, end_step: EndStep) -> None:
    """Train one of the two, and call the function at the end of every step."""
    train(case, vocabulary, steps, ours=ours, callback=Step(end_step))


def compare_memory(case: str, vocabulary: int, steps: int) -> None:
    """Print the peak memory of both, each in a process of its own."""
    peaks = {}
    for kind in ("theirs", "ours"):
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.throughput",
            "--once",
            kind,
            "--steps",
            str(steps),
            "--cases",
            case,
        ]
        done = subprocess.run(
            [*command, "--vocabularies", str(vocabulary)], capture_output=True, text=True, check=True
        )
        peaks[kind] = int(done.stdout.split()[-1]) / 1024
    ratio = peaks["ours"] / peaks["theirs"]
    print(f"{case}, vocabulary {vocabulary:,}: {peaks['ours']:.0f} MB, Trainer {peaks['theirs']:.0f} MB, {ratio:.4f}")


def compare_saves(pairs: int) -> None:
    """Print the wall time of a checkpoint of a tiny model, theirs and ours: ours are on the disk when they appear."""
    for case in ("idle", "stage"):
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(pairs):
            for ours in (False, True) if number % 2 else (True, False):
                train(case, 64, SAVES, ours=ours, callback=(clock := Saves()), save_strategy="steps", save_steps=1)
                times[ours].append(clock.seconds)
        for ours, name in ((False, "Trainer"), (True, "ours")):
            listed = " ".join(f"{seconds:.2f}" for seconds in times[ours])
            print(f"{case}, {SAVES} saves, {name}: median {median(times[ours]):.2f} s ({listed})", flush=True)


class Saves(TrainerCallback):
    """Add up the wall time between the end of each step and the end of its checkpoint."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds += time.perf_counter() - self._began


def train(
    case: str,
    vocabulary: int,
    steps: int,
    *,
    ours: bool,
    callback: TrainerCallback | None = None,
    **arguments: Any,
) -> None:
    """Train one of the two."""
    torch.manual_seed(0)
    batch, length = TOKENS.get(vocabulary, (2, 16))
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
        } | arguments  # fmt: skip
        trainer = make(case, LlamaForCausalLM(config), settings, content, collator, steps, ours)
        trainer.remove_callback(PrinterCallback)
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train()


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
