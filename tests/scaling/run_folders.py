"""Folders as ContinualTrainer leaves them, written without training: a muP ladder whose losses follow a law."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_warmscale import MupConfig
from hf_warmscale.scaling.runs import count_parameters
from tests.scaling.measurements import true_loss

ARGUMENTS = {"weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "max_grad_norm": 1.0}
STEPS = 10


def mup_config(hidden_size: int, **fields: Any) -> MupConfig:
    """Return the config of a rung: heads of 8, so that sizes are in proportion."""
    return MupConfig(
        vocab_size=200,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=hidden_size // 8,
        num_key_value_heads=hidden_size // 8,
        head_dim=8,
        mup={"base_hidden_size": 16, "base_num_hidden_layers": 2},
        **fields,
    )


def write_run(folder: Path, *, hidden_size: int, tokens: int, loss: float, seed: int = 0, **changes: Any) -> Path:
    """Write what a cooled branch of a trunk leaves; `changes` are fields of its stage."""
    checkpoint = folder / f"checkpoint-{STEPS}"
    mup_config(hidden_size).save_pretrained(checkpoint)
    mixture = {"seed": seed, "sources": {"text": {"rows": 9, "fingerprint": "ab"}}, "weights": {"0": {"text": 1.0}}}
    trunk = {"name": "trunk", "mixture": mixture, "progress": {"step": 90, "tokens": {"text": tokens - tokens // 5}}}
    stage = {
        "name": "trunk-anneal",
        "schedule": {"name": "wsd", "learning_rate": 0.01, "min_lr": 0.0},
        "max_steps": STEPS,
        "samples_per_step": 4,
        "mixture": mixture,
        "arguments": {**ARGUMENTS, "model": {"initializer_range": 0.02, "logits_scaling": hidden_size / 16}},
        "progress": {"step": STEPS, "tokens": {"text": tokens // 5}},
        "lineage": [trunk],
    }
    state = {
        "global_step": STEPS,
        "max_steps": STEPS,
        "log_history": [
            {"step": 5, "learning_rate": 0.005, "loss": 4.0},
            {"step": STEPS, "eval_loss": loss},
        ],
    }
    (checkpoint / "stage.json").write_text(json.dumps({**stage, **changes}))
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return folder


def write_ladder(
    folder: Path, sizes: tuple[int, ...], ratios: tuple[float, ...] = (100.0,), *, seed: int = 0
) -> list[Path]:
    """Write the runs of a ladder: every size at so many tokens per parameter of the smallest."""
    smallest = count_parameters(mup_config(min(sizes)))[0]
    runs = []
    for size in sizes:
        parameters = count_parameters(mup_config(size))[0]
        for ratio in ratios:
            tokens = 5 * int(ratio * smallest / 5)
            loss = float(np.round(true_loss(parameters, tokens), 12))
            name = folder / f"{size}-{ratio:g}-{seed}"
            runs.append(write_run(name, hidden_size=size, tokens=tokens, loss=loss, seed=seed))
    return runs
