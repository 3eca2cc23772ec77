"""The steps of the quickstart on a device without float64: they stay there and give the numbers of the CPU."""

import torch
from torch.optim import AdamW

from hf_warmscale.mup import MupForCausalLM, mup_param_groups
from hf_warmscale.quickstart.runs import GROWN_HIDDEN_SIZE, fresh_model, model_config
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.resize import grow_from_pretrained
from tests.fake_device import DEVICE, DeviceWithoutFloat64

SETTINGS = Settings(tokens=20_000, vocab_size=64, row_length=16)
WIDER = {
    name: getattr(model_config(SETTINGS, GROWN_HIDDEN_SIZE), name)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
}


def train_and_grow(device: torch.device) -> tuple[torch.Tensor, MupForCausalLM]:
    """Train the base for two steps, grow it as the quickstart does, and return its logits and the grown model."""
    model = fresh_model(SETTINGS, 64)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides its arguments
    optimizer = AdamW(mup_param_groups(model, lr=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay))
    tokens = torch.arange(32).reshape(2, 16).to(device)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
    grown = grow_from_pretrained(model, **WIDER, width="szp", seed=SETTINGS.seed)
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert {parameter.device for parameter in grown.parameters()} == {device}
    with torch.no_grad():
        logits = grown(input_ids=tokens, use_cache=False).logits
    assert isinstance(grown, MupForCausalLM)
    return logits.cpu(), grown


def test_training_and_growing() -> None:
    expected, on_cpu = train_and_grow(torch.device("cpu"))
    with DeviceWithoutFloat64():
        logits, on_device = train_and_grow(DEVICE)
        weights = {name: parameter.cpu() for name, parameter in on_device.named_parameters()}
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for name, parameter in on_cpu.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-6)
