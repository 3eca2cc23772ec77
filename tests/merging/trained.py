"""A small model trained for some seconds on source code, with checkpoints of its constant-rate phase."""

import inspect
import json
import textwrap
from pathlib import Path

import torch

from hf_warmscale.checkpoints import save_model
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

STEPS = (60, 80, 100, 120)


def documents() -> list[str]:
    """Some 200 functions of the standard library."""
    found = [
        textwrap.dedent(inspect.getsource(member))[:200]
        for module in (inspect, textwrap, json.decoder, json.encoder)
        for _, member in sorted(vars(module).items())
        if inspect.isfunction(member) and inspect.getsourcefile(member)
    ]
    return list(dict.fromkeys(found))


def train_checkpoints(folder: Path) -> list[Path]:
    """Train with a constant, high rate, and save at `STEPS`."""
    torch.manual_seed(0)
    tokenizer, model = tiny_tokenizer(), tiny_llama(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    text = tokenizer("\n".join(documents()), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saved = []
    for step in range(1, STEPS[-1] + 1):
        starts = torch.randint(len(text) - 65, (8,))
        batch = torch.stack([text[start : start + 64] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            saved.append(folder / f"checkpoint-{step}")
            save_model(model, saved[-1], tokenizer=tokenizer)
    return saved
