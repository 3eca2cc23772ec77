"""Times and memory on the device: a stage beside `Trainer`, a distillation step beside its parts, a drafted text.

Times are noted and never judged. The peak memory of a stage is judged, for it does not depend on what else runs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from hf_warmscale import (
    ContinualTrainer,
    ContinualTrainingArguments,
    DistillationTrainer,
    EmulatedFineTuningForCausalLM,
    ReplayMixture,
    Stage,
)
from hf_warmscale.decoding.speculation import BlockSpeed, measure_block_length
from tests.benchmarks.throughput import make, rows
from tests.benchmarks.turns import WARM_UP, Step
from tests.gpu.registry import Figures, Machine, SkippedError, check, require
from tests.gpu.stages import BILLION, TINY, Shape, quick_llama, settings

PAIRS = 3
BATCH, LENGTH = 4, 1024
"""Of a stage that is timed: rows in a step, tokens in a row."""

NEEDED_GIB = 50
"""For 1.24 B parameters in float32, their gradients and moments, and the activations of 4,096 tokens."""

MOST_MEMORY = 1.02
"""The share of Trainer's peak memory that a stage may take."""

BLOCKS = (0, 1, 2, 4, 8)
"""Tokens that the draft proposes at a time; 0 is no draft."""

CONFIDENCE = 20.0
"""A factor on the logits of the tuned model: it decides, as after a real tuning, so that drafts are accepted."""


@check
def throughput(machine: Machine, figures: Figures) -> None:
    """A stage of two sources under bf16 in turn with `Trainer` on the same rows; it takes no more memory."""
    require_memory(machine)
    figures |= {"trainer": [], "stage": []}
    for number in range(repeats(machine)):
        for name in ("trainer", "stage") if number % 2 else ("stage", "trainer"):
            figures[name].append(measured(machine, partial(beside_trainer, machine, name == "stage")))
    theirs, ours = figures["trainer"], figures["stage"]
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(theirs, ours, strict=True)]
    figures["throughput_of_trainer"] = {"median": median(ratios), "all": ratios}
    if machine.device.type == "cuda":
        figures["memory_of_trainer"] = memory = ours[0]["peak_gib"] / theirs[0]["peak_gib"]
        require(memory <= MOST_MEMORY, f"A stage takes {memory:.3f} times the memory of Trainer.")


def beside_trainer(machine: Machine, ours: bool, folder: str) -> Trainer:
    """Return one of the two, on a model of 1.24 B parameters."""
    model = quick_llama(machine, TINY if machine.tiny else BILLION)
    return make("stage", model, timed(machine, folder), content(machine, model), None, steps(machine), ours)


@check
def distillation_step(machine: Machine, figures: Figures) -> None:
    """A step towards a live teacher, beside a step of the student and a forward pass of the teacher."""
    require_memory(machine)
    small = TINY if machine.tiny else replace(BILLION, num_hidden_layers=4)
    teacher = quick_llama(machine, replace(small, num_hidden_layers=2 * small.num_hidden_layers), seed=1)
    teacher.eval().bfloat16()
    trainers: dict[str, Any] = {
        "student": ContinualTrainer,
        "distilled": partial(DistillationTrainer, teacher=teacher, alpha=0.5),
    }
    for name in [*trainers] * repeats(machine):
        build = partial(two_sources, machine, small, trainers[name])
        figures.setdefault(name, []).append(measured(machine, build))
    figures["teacher_seconds"] = alone = forward_seconds(machine, teacher)
    pairs = zip(figures["student"], figures["distilled"], strict=True)
    figures["time_of_the_parts"] = [whole["seconds"] / (part["seconds"] + alone) for part, whole in pairs]


def two_sources(machine: Machine, sizes: Shape, trainer: Callable[..., Trainer], folder: str) -> Trainer:
    """Return a trainer of a stage on two sources."""
    model = quick_llama(machine, sizes)
    samples = content(machine, model)
    mixture = ReplayMixture({"new": samples[::2], "old": samples[1::2]}, [0.75, 0.25])
    stage = Stage("timed", "constant", mixture, max_steps=steps(machine))
    return trainer(model, ContinualTrainingArguments(**timed(machine, folder)), stage=stage)


@torch.no_grad()
def forward_seconds(machine: Machine, model: PreTrainedModel) -> float:
    """Return the seconds of a forward pass over the rows of a step."""
    tokens = torch.stack([row["input_ids"] for row in content(machine, model)[:BATCH]]).to(model.device)
    for number in range(steps(machine)):
        if number == WARM_UP:
            began = machine.clock()
        model(input_ids=tokens, use_cache=False)
    return (machine.clock() - began) / (steps(machine) - WARM_UP)


@check
def speculative_decoding(machine: Machine, figures: Figures) -> None:
    """Emulated fine-tuning with the small tuned model as its draft, in turn with plain; both texts are greedy."""
    model, tuned = emulated(machine)
    prompt = torch.arange(1, 17, device=machine.device)[None]
    options: dict[str, Any] = {"max_new_tokens": 12 if machine.tiny else 32, "do_sample": False}

    def measure(length: int) -> BlockSpeed:
        return measure_block_length(model, tuned, [prompt], length, clock=machine.clock, **options)

    rounds = [[measure(length) for length in BLOCKS] for _ in range(1 + repeats(machine))][1:]  # the first warms up
    for length, found in zip(BLOCKS, zip(*rounds, strict=True), strict=True):
        figures[f"block_{length}"] = {"tokens_per_second": [each.tokens_per_second for each in found]}
        if length:
            ratios = [
                each.tokens_per_second / row[0].tokens_per_second for each, row in zip(found, rounds, strict=True)
            ]
            figures[f"block_{length}"] |= {"accepted": found[0].accepted, "speedup": median(ratios)}
    drafted = model.generate(prompt, assistant_model=tuned, **options)
    figures["gap"], bar = gap(model, drafted, prompt.shape[1], tuned.dtype)
    require(figures["gap"] <= bar, f"A drafted token is {figures['gap']:.2g} nats below the best one.")


def emulated(machine: Machine) -> tuple[EmulatedFineTuningForCausalLM, PreTrainedModel]:
    """Return a large base steered by a small tuned model, and that model."""
    large = TINY if machine.tiny else BILLION
    small = large if machine.tiny else replace(large, hidden_size=512, intermediate_size=1024, num_hidden_layers=4)
    members = [quick_llama(machine, sizes, seed=seed).eval() for seed, sizes in enumerate((large, small, small))]
    for member in () if machine.tiny else members:
        member.bfloat16()
    base, tuned, reference = members
    tuned.model.norm.weight.data.mul_(CONFIDENCE)
    return EmulatedFineTuningForCausalLM(base, tuned, reference), tuned


@torch.no_grad()
def gap(model: PreTrainedModel, text: torch.Tensor, prompt: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return how far a token of a text is below the best one there, in nats, and what rounding explains of it."""
    says = model(input_ids=text).logits[:, prompt - 1 : -1].log_softmax(-1)
    chosen = says.gather(-1, text[:, prompt:, None])[..., 0]
    return float((says.amax(-1) - chosen).max()), float(torch.finfo(dtype).eps ** 0.5 * says.abs().max())


# ---- Measuring ----


def require_memory(machine: Machine) -> None:
    """Skip where the memory of the device is too small."""
    if machine.tiny or machine.device.type != "cuda":
        return
    found = torch.cuda.get_device_properties(machine.device).total_memory / 2**30
    if found < NEEDED_GIB:
        raise SkippedError(f"The device has {found:.0f} GiB, and the stage needs about {NEEDED_GIB}.")


def repeats(machine: Machine) -> int:
    """Return how often everything that is timed runs."""
    return 1 if machine.tiny else PAIRS


def steps(machine: Machine) -> int:
    """Return the steps of a stage that is timed."""
    return WARM_UP + (2 if machine.tiny else 10)


def timed(machine: Machine, folder: str) -> dict[str, Any]:
    """Return the arguments of a stage that is timed."""
    return {**settings(machine), "per_device_train_batch_size": BATCH, "bf16": True, "output_dir": folder}


def content(machine: Machine, model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """Return the rows of a stage that is timed."""
    return rows(False, steps(machine) * BATCH, 16 if machine.tiny else LENGTH, model.config.vocab_size)


def measured(machine: Machine, build: Callable[[str], Trainer]) -> Figures:
    """Train and return the seconds of a step after the first few, and the peak memory in GiB."""
    machine.peak_gib()  # forgets what came before
    ends, last = list[float](), steps(machine)
    # The device is waited for only twice: whatever else waits for it in a step is to be seen in the time.
    note = Step(lambda: ends.append(machine.clock() if len(ends) + 1 in (WARM_UP, last) else 0.0))
    with TemporaryDirectory() as folder:
        trainer = build(folder)
        trainer.add_callback(note)
        trainer.train()
    return {"seconds": (ends[-1] - ends[WARM_UP - 1]) / (last - WARM_UP), "peak_gib": machine.peak_gib()}
