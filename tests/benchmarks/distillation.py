"""A distillation step against a student step plus a teacher's forward pass, and its peak memory.

    python tests/benchmarks/distillation.py [--pairs 7] [--steps 8] [--vocabularies 1024 49152 151936]
        [--hidden-sizes 64 96] [--memory]

Time is the median processor time of a step after the second: other work on the machine takes none of it. A pair is a
run of `DistillationTrainer`, a run of `ContinualTrainer` on the same rows, and forward passes of the teacher on them,
in turns; every ratio is printed, and the median. Wanted: at most 1.10. With `--memory`, the peak memory of one process
per trainer instead; the plain one holds the student alone. Wanted: at most 1.2. `--cached` reads a `TeacherCache` of
64 tokens in place of the teacher, and leaves its forward pass out of the sum.
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
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging

from hf_warmscale import (
    ContinualTrainer,
    ContinualTrainingArguments,
    DistillationTrainer,
    ReplayMixture,
    Stage,
    TeacherCache,
)

VOCABULARIES = (1024, 49152, 151936)
TOKENS = {1024: (8, 256), 49152: (4, 128), 151936: (2, 128)}
"""Rows and tokens in a row of a step, by vocabulary."""
HIDDEN_SIZES = (64, 96)
"""Of student and teacher: small, so that the loss is a large part of a step."""


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, choices=VOCABULARIES)
    parser.add_argument("--hidden-sizes", type=int, nargs=2, default=HIDDEN_SIZES, metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--direction", choices=("forward", "reverse"), default="forward")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--once", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for vocabulary in arguments.vocabularies:
        if arguments.once:
            measure(vocabulary, arguments, distilled=arguments.once == "ours")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        elif arguments.memory:
            compare_memory(vocabulary, arguments)
        else:
            compare_time(vocabulary, arguments)


def compare_time(vocabulary: int, arguments: argparse.Namespace) -> None:
    """Print a step as a multiple of its parts, pair by pair."""
    ratios = []
    for pair in range(arguments.pairs + 1):
        order = (False, True) if pair % 2 else (True, False)
        seconds = {distilled: measure(vocabulary, arguments, distilled=distilled) for distilled in order}
        teacher = 0.0 if arguments.cached else forward(vocabulary, arguments)
        ratios.append(seconds[True] / (seconds[False] + teacher))
    listed = " ".join(f"{ratio:.3f}" for ratio in ratios[1:])  # the first warms up
    print(f"vocabulary {vocabulary:,}: median {median(ratios[1:]):.4f} of student + teacher ({listed})", flush=True)


def compare_memory(vocabulary: int, arguments: argparse.Namespace) -> None:
    """Print the peak memory of both, each in a process of its own."""
    peaks = {}
    for kind in ("plain", "ours"):
        command = [sys.executable, __file__, "--once", kind, "--vocabularies", str(vocabulary), "--steps", "3"]
        command += ["--hidden-sizes", *map(str, arguments.hidden_sizes)]
        command += ["--alpha", str(arguments.alpha), "--direction", arguments.direction]
        command += ["--cached"] if arguments.cached else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = int(done.stdout.split()[-1]) / 1024
    ratio = peaks["ours"] / peaks["plain"]
    print(f"vocabulary {vocabulary:,}: {peaks['ours']:.0f} MB, plain {peaks['plain']:.0f} MB, {ratio:.4f}", flush=True)


def measure(vocabulary: int, arguments: argparse.Namespace, *, distilled: bool) -> float:
    """Return the processor seconds of an optimizer step."""
    batch, length = TOKENS[vocabulary]
    steps = arguments.steps
    tokens = torch.randint(vocabulary, (steps * batch, length), generator=torch.Generator().manual_seed(1))
    content = [{"input_ids": row, "labels": row} for row in tokens]
    half = len(content) // 2
    mixture = ReplayMixture({"new": content[:half], "old": content[half:]}, [0.75, 0.25])
    stage = Stage("measured", "constant", mixture, max_steps=steps)
    with TemporaryDirectory() as folder:
        settings = ContinualTrainingArguments(
            output_dir=str(Path(folder) / "run"), per_device_train_batch_size=batch, learning_rate=1e-3,
            save_strategy="no", logging_steps=10, use_cpu=True, disable_tqdm=True, report_to="none",
        )  # fmt: skip
        student = model(arguments.hidden_sizes[0], vocabulary)
        if distilled:
            teacher: Any = model(arguments.hidden_sizes[1], vocabulary)
            if arguments.cached:
                teacher = TeacherCache.write(Path(folder) / "cache", teacher, content, batch_size=batch)
            trainer: ContinualTrainer = DistillationTrainer(
                student, settings, teacher=teacher, stage=stage, alpha=arguments.alpha, direction=arguments.direction
            )
        else:
            trainer = ContinualTrainer(student, settings, stage=stage)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        return median(later - earlier for earlier, later in pairwise(clock.times[1:]))


@torch.no_grad()
def forward(vocabulary: int, arguments: argparse.Namespace) -> float:
    """Return the processor seconds of a forward pass of the teacher on the rows of a step."""
    teacher, tokens = (
        model(arguments.hidden_sizes[1], vocabulary).eval(),
        torch.randint(vocabulary, TOKENS[vocabulary]),
    )
    seconds = []
    for _ in range(arguments.steps):
        started = time.process_time()
        teacher(input_ids=tokens, use_cache=False)
        seconds.append(time.process_time() - started)
    return median(seconds)


class Clock(TrainerCallback):
    """Note the processor time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note it."""
        self.times.append(time.process_time())


def model(hidden_size: int, vocabulary: int) -> LlamaForCausalLM:
    """Return a Llama of four blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=4,
        num_attention_heads=2, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


if __name__ == "__main__":
    main()
