"""A small model trained on source code, and four checkpoints around it whose averages are better by construction."""

import inspect
import json
import textwrap
from pathlib import Path

import torch

from hf_warmscale.checkpoints import save_model
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

STEPS = 60
AWAY = {60: (0.8, 2), 80: (0.6, 1), 100: (0.4, 0), 120: (-0.24, 0)}
"""How far each checkpoint is from the trained model, in parts of each weight's RMS, and in which random direction.

The loss rises with the square of the distance: by some 0.14 nats at 0.24, 0.35 at 0.4 and 0.8 at 0.6, and no direction
is half or twice as steep as another. So the last is the best single one, the others follow in order, and what lies
between the last two, on opposite sides of the trained model, is better than both by many times the spread over texts.
"""


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
    """Train for `STEPS`, and save what lies around the trained model."""
    torch.manual_seed(0)
    tokenizer, model = tiny_tokenizer(), tiny_llama(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    text = tokenizer("\n".join(documents()), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        starts = torch.randint(len(text) - 65, (8,))
        batch = torch.stack([text[start : start + 64] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    for step, (distance, direction) in AWAY.items():
        generator = torch.Generator().manual_seed(direction)
        for parameter, weight in zip(model.parameters(), trained, strict=True):
            noise = torch.randn(weight.shape, generator=generator)
            parameter.data = weight + distance * weight.square().mean().sqrt() * noise
        save_model(model, folder / f"checkpoint-{step}", tokenizer=tokenizer)
    return [folder / f"checkpoint-{step}" for step in AWAY]
