"""Compare with torchao, through transformers; raises where they differ.

python -m tests.compression.torchao_worker
"""

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from torchao.quantization.quant_api import _int8_weight_only_quantize_tensor, _intx_weight_only_quantize_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.architecture import describe
from hf_warmscale.compression import fake_quantize, quantization_config
from hf_warmscale.compression.compressed import Compression, compressed
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from tests.training.tiny import tiny_model


def round_trips() -> None:
    """Compare the weights of both round trips: int8 in every dtype, fewer bits in float32."""
    weight = torch.randn(24, 64)
    weight[3] = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        by_torchao = _int8_weight_only_quantize_tensor(weight.to(dtype), Int8WeightOnlyConfig()).dequantize()
        assert torch.equal(fake_quantize(weight.to(dtype), 8), by_torchao), dtype
    for bits in range(2, 9):
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(32))
        by_torchao = _intx_weight_only_quantize_tensor(weight, config).dequantize()
        assert torch.equal(fake_quantize(weight, bits, 32), by_torchao), bits


def model(folder: Path, bits: int, group_size: int | None) -> None:
    """Quantize a model through transformers: it reloads, gives the logits of the fake, and has the counted bytes."""
    plain = tiny_model(dropout=0.0).eval()
    plain.save_pretrained(folder / "plain")
    config = quantization_config(bits, group_size)
    quantized = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config)
    tokens = torch.arange(16)[None]
    logits = quantized(tokens).logits
    with compressed(plain, describe(plain.config), Compression(bits, 0.0, group_size, (), ("hidden",))) as size:
        torch.testing.assert_close(plain(tokens).logits, logits, atol=2e-5, rtol=0)
    quantized.save_pretrained(folder / str(bits))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder / str(bits))(tokens).logits, logits)
    if bits == 8:  # below, torchao keeps a byte for every integer
        stored = load_file(folder / "8" / "model.safetensors")
        symmetric = [name for name in stored if not name.endswith("zero_point")]  # all zero
        assert sum(stored[name].nbytes for name in symmetric) == size


@torch.no_grad()
def members(folder: Path) -> None:
    """Use quantized models together with a plain one: by the formula, with a quantized draft, saved by name."""
    names, tokens = [folder / "8", folder / "plain", folder / "4"], torch.arange(16)[None]
    large, tuned, small = (AutoModelForCausalLM.from_pretrained(name)(tokens).logits.log_softmax(-1) for name in names)
    model = EmulatedFineTuningForCausalLM.from_members(*names, dtype="auto")
    logits = model(tokens).logits
    torch.testing.assert_close(logits, (large + tuned - small).log_softmax(-1), atol=2e-5, rtol=0)
    greedy: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    drafted = model.generate(tokens, assistant_model=cast(PreTrainedModel, model.reference), **greedy)
    assert torch.equal(drafted, model.generate(tokens, **greedy))
    model.save_pretrained(folder / "together")
    again = EmulatedFineTuningForCausalLM.from_pretrained(folder / "together")
    assert torch.equal(again(tokens).logits, logits)


if __name__ == "__main__":
    round_trips()
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder), 8, None)
        model(Path(folder), 4, 8)
        members(Path(folder))
    print("agrees")
