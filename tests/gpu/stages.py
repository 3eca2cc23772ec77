"""Random models, rows of two sources, stages on them, and the same training in a plain loop."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer

from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage
from tests.conftest import perturb
from tests.gpu.registry import Machine

STEPS, ROWS, RATE = 6, 8, 1e-2
"""Of a stage whose losses are compared: steps, rows in a step, learning rate."""

ADAM: dict[str, Any] = {"lr": RATE, "eps": 1e-4, "weight_decay": 0.0}
"""A large eps: where a gradient vanishes, rounding would decide the sign of Adam's step."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, under their names in the config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 2048


TINY = Shape(32, 64, 2, 2, 1, 272)
SMALL = Shape(512, 1024, 4, 8, 4, 8192)
BILLION = Shape(2048, 8192, 16, 32, 8, 128_256)
"""That of Llama 3.2 1B: 1.24 B parameters with a tied embedding."""


def shape(machine: Machine) -> Shape:
    """Return the shape for comparisons, which also run on the CPU."""
    return TINY if machine.tiny else SMALL


def config_of(sizes: Shape) -> LlamaConfig:
    """Return a config without special tokens, so that no random token ends a text."""
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaConfig(**{**asdict(sizes), **tokens, "tie_word_embeddings": True})


def llama(
    sizes: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> LlamaForCausalLM:
    """Return a random model on the CPU in which no gain is 1."""
    torch.manual_seed(seed)
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(
        config_of(sizes), dtype=dtype, attn_implementation=attn_implementation
    )
    perturb(model, std=sizes.hidden_size**-0.5 / 4, seed=seed)
    return model


def placed(model: LlamaForCausalLM, machine: Machine) -> LlamaForCausalLM:
    """Return a copy on the device."""
    copied = deepcopy(model)
    nn.Module.to(copied, machine.device)
    return copied


def quick_llama(machine: Machine, sizes: Shape, *, seed: int = 0) -> LlamaForCausalLM:
    """Return a random model that is made on the device."""
    torch.manual_seed(seed)
    with machine.device:
        return LlamaForCausalLM(config_of(sizes))


def rows(sizes: Shape, count: int, length: int, *, seed: int) -> list[dict[str, list[int]]]:
    """Return random rows over a sixteenth of the vocabulary: their frequencies are soon learnt."""
    part = sizes.vocab_size // 16
    tokens = torch.randint(
        seed * part, (seed + 1) * part, (count, length), generator=torch.Generator().manual_seed(seed)
    )
    return [{"input_ids": row, "labels": row} for row in tokens.tolist()]


def two_sources(machine: Machine) -> ReplayMixture:
    """Return a mixture with a quarter of replay."""
    length = 16 if machine.tiny else 64
    sources = {"new": rows(shape(machine), 64, length, seed=1), "old": rows(shape(machine), 64, length, seed=2)}
    return ReplayMixture(sources, [0.75, 0.25])


def settings(machine: Machine) -> dict[str, Any]:
    """Return the arguments of a stage whose losses are compared."""
    return {
        "per_device_train_batch_size": ROWS, "learning_rate": RATE, "adam_epsilon": ADAM["eps"], "max_grad_norm": 0.0,
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "report_to": "none",
        "tf32": False, "use_cpu": machine.device.type == "cpu",
    }  # fmt: skip


def constant_stage(machine: Machine) -> Stage:
    """Return a short stage on both sources at one rate."""
    return Stage("checked", "constant", two_sources(machine), max_steps=STEPS)


def train(
    machine: Machine, model: nn.Module, trainer: Callable[..., ContinualTrainer] = ContinualTrainer, **others: Any
) -> ContinualTrainer:
    """Train a stage on the device."""
    with TemporaryDirectory() as folder:
        args = ContinualTrainingArguments(output_dir=folder, **{**settings(machine), **others})
        made = trainer(model, args, stage=constant_stage(machine))
        made.train()
    return made


def losses(trainer: Trainer) -> list[float]:
    """Return the logged loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain_losses(
    machine: Machine,
    model: PreTrainedModel,
    groups: Iterable[Any] | None = None,
    loss_of: Callable[[PreTrainedModel, Tensor], Tensor] | None = None,
) -> list[float]:
    """Return the losses of the same steps in a plain loop, in the dtype and on the device of the model."""
    optimizer = torch.optim.AdamW(model.parameters() if groups is None else groups, **ADAM)
    mixture, found = two_sources(machine), []
    model.train()
    for step in range(STEPS):
        samples = mixture.__getitems__(range(step * ROWS, (step + 1) * ROWS))
        batch = torch.tensor([row["input_ids"] for row in samples], device=model.device)
        loss = loss_of(model, batch) if loss_of else model(input_ids=batch, labels=batch, use_cache=False).loss
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found
