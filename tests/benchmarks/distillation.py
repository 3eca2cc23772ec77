"""A distillation step against a student step plus a teacher's forward pass, and its peak memory.

    python -m tests.benchmarks.distillation [--pairs 7] [--steps 12] [--vocabularies 1024 49152 151936]
        [--hidden-sizes 64 96] [--memory]

`DistillationTrainer`, `ContinualTrainer` on the same rows and forward passes of the teacher take turns after every
step, so that the steps that are compared are neighbours in time. Time is processor time; a pair gives the median over
its steps of ours divided by the sum of the other two. Wanted: at most 1.10. With `--memory`, the peak memory of one
process per trainer instead; the plain one holds the student alone. Wanted: at most 1.2. `--cached` reads a
`TeacherCache` of 64 tokens in place of the teacher, and leaves its forward pass out of the sum.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

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
from tests.benchmarks.turns import EndStep, Step, Turns

VOCABULARIES = (1024, 49152, 151936)
TOKENS = {1024: (8, 256), 49152: (4, 128), 151936: (2, 128)}
"""Rows and tokens in a row of a step, by vocabulary."""
HIDDEN_SIZES = (64, 96)
"""Of student and teacher: small, so that the loss is a large part of a step."""


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
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
    ratios = [pair(vocabulary, arguments, first=number % 2) for number in range(arguments.pairs)]
    listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"vocabulary {vocabulary:,}: median {median(ratios):.4f} of student + teacher ({listed})", flush=True)


def pair(vocabulary: int, arguments: argparse.Namespace, *, first: int) -> float:
    """Let all three take turns, and return the median of the ratios of neighbouring steps."""
    turns = Turns(3, first)
    turns.run(
        [
            lambda end_step: measure(vocabulary, arguments, distilled=True, callback=Step(end_step)),
            lambda end_step: measure(vocabulary, arguments, distilled=False, callback=Step(end_step)),
            lambda end_step: forward(vocabulary, arguments, end_step),
        ]
    )
    ours, plain, teacher = turns.seconds
    parts = [one + (0.0 if arguments.cached else other) for one, other in zip(plain, teacher, strict=True)]
    ratio: float = median(step / part for step, part in zip(ours, parts, strict=True))
    return ratio


def compare_memory(vocabulary: int, arguments: argparse.Namespace) -> None:
    """Print the peak memory of both, each in a process of its own."""
    peaks = {}
    for kind in ("plain", "ours"):
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.distillation",
            "--once",
            kind,
            "--vocabularies",
            str(vocabulary),
            "--steps",
            "3",
        ]
        command += ["--hidden-sizes", *map(str, arguments.hidden_sizes)]
        command += ["--alpha", str(arguments.alpha), "--direction", arguments.direction]
        command += ["--cached"] if arguments.cached else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = int(done.stdout.split()[-1]) / 1024
    ratio = peaks["ours"] / peaks["plain"]
    print(f"vocabulary {vocabulary:,}: {peaks['ours']:.0f} MB, plain {peaks['plain']:.0f} MB, {ratio:.4f}", flush=True)


def measure(
    vocabulary: int, arguments: argparse.Namespace, *, distilled: bool, callback: TrainerCallback | None = None
) -> None:
    """Train one of the two."""
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
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train()


@torch.no_grad()
def forward(vocabulary: int, arguments: argparse.Namespace, end_step: EndStep) -> None:
    """Let the teacher read the rows of a step, as often as there are steps."""
    teacher = model(arguments.hidden_sizes[1], vocabulary).eval()
    tokens = torch.randint(vocabulary, TOKENS[vocabulary])
    for _ in range(arguments.steps):
        teacher(input_ids=tokens, use_cache=False)
        end_step()


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
