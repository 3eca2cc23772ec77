"""A shrunk model gets better on real text, on that text alone or towards the model it was cut from."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_warmscale import ContinualTrainer, HealingTrainer, Stage, shrink_from_pretrained
from tests.training.tiny import arguments, losses

pytestmark = pytest.mark.xdist_group("healing")  # the large model is trained once, on one worker

LENGTH = 64
Rows = list[dict[str, list[int]]]


@pytest.fixture(scope="module")
def text() -> Rows:
    """The documentation that Python carries, as bytes: real English on every machine."""
    stream = "\n".join(topics[name] for name in sorted(topics)).encode()[: 1200 * LENGTH]
    blocks = [list(stream[start : start + LENGTH]) for start in range(0, len(stream) - LENGTH, LENGTH)]
    return [{"input_ids": block, "labels": block} for block in blocks]


@pytest.fixture(scope="module")
def large(text: Rows, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    train(ContinualTrainer, model, text[:1000], tmp_path_factory.mktemp("large"), steps=150)
    model.eval()
    return model


def train(
    kind: Callable[..., ContinualTrainer],
    model: nn.Module,
    rows: Rows,
    folder: Path,
    steps: int,
    seed: int = 0,
    **more: Any,
) -> None:
    stage = Stage("text", {"name": "rewarm_cosine", "warmup": 0.1}, max_steps=steps)
    settings = arguments(folder, per_device_train_batch_size=8, learning_rate=1e-2, save_strategy="no", seed=seed)
    kind(model, settings, train_dataset=rows, stage=stage, **more).train()


@torch.no_grad()
def loss(model: PreTrainedModel, rows: Rows) -> float:
    """Nats a byte."""
    tokens = torch.tensor([row["input_ids"] for row in rows])
    return float(model.eval()(input_ids=tokens, labels=tokens).loss)


@pytest.mark.parametrize("distilled", [True, False])
def test_a_shrunk_model_heals(large: LlamaForCausalLM, text: Rows, distilled: bool, tmp_path: Path) -> None:
    """Over orders of the text, the held-out loss falls by many times what the order changes."""
    held_out = text[1000:]
    calibration = torch.tensor([row["input_ids"] for row in text[:16]])
    small = shrink_from_pretrained(large, num_hidden_layers=2, intermediate_size=64, calibration=calibration)
    before, gains = loss(small, held_out), []
    for seed in range(3):
        healed, folder = deepcopy(small), tmp_path / str(seed)
        if distilled:
            train(HealingTrainer, healed, text[:1000], folder, steps=40, seed=seed, teacher=large)
        else:
            train(ContinualTrainer, healed, text[:1000], folder, steps=40, seed=seed)
        gains.append(before - loss(healed, held_out))
    print(f"shrunk {before:.3f} nats a byte, gains {gains}")
    assert before > loss(large, held_out)
    assert mean(gains) > 4 * stdev(gains)


def test_accumulated_or_not_the_loss_is_the_same(large: LlamaForCausalLM, text: Rows, tmp_path: Path) -> None:
    """The mean over the tokens of a step, however the step is cut."""
    curves = []
    for batch, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = LlamaForCausalLM(large.config)
        folder = tmp_path / str(batch)
        settings = arguments(folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        stage = Stage("text", "constant", max_steps=3)
        trainer = HealingTrainer(model, settings, train_dataset=text, stage=stage, teacher=large)
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
