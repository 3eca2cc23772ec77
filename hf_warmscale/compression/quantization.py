"""Weights in few bits: the mapping of torchao for any number of bits, and torchao itself through transformers.

The mapping is symmetric round-to-nearest: `scale = max|w| / q` with `q = (2^bits - 1) / 2`, and the integer is
`round(w / scale)` in `[-2^(bits-1), 2^(bits-1) - 1]`. One scale is shared by a row (an output unit) or by groups of
`group_size` inputs of it.
"""

from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import TorchAoConfig

INTEGER_BITS = range(2, 9)
FLOATS = {16: torch.bfloat16, 32: torch.float32}
"""Numbers of bits that mean a floating-point format, without scales."""

SMALLEST_SCALE = torch.finfo(torch.float32).eps
SCALE_BYTES = 4


def check_bits(bits: int) -> None:
    """Refuse a number of bits for which there is no format.

    Raises:
        ValueError: naming the number.
    """
    if bits not in INTEGER_BITS and bits not in FLOATS:
        raise ValueError(f"bits is {bits}; give 2 to 8 for integers with scales, 16 for bfloat16 or 32 for float32.")


def check_group_size(group_size: int | None) -> None:
    """Refuse a group without weights.

    Raises:
        ValueError: if it is below 1.
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size is {group_size}; give the inputs that share a scale, such as 32, or None.")


def fake_quantize(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """Round a weight to the values that it has in few bits, in its own dtype.

    With 8 bits and no groups the result is that of torchao's `Int8WeightOnlyConfig`, bit for bit; with groups or fewer
    bits it is that of its `IntxWeightOnlyConfig`, bit for bit in float32.

    Args:
        weight (`Tensor`): `[..., out, in]`, floating point, with the inputs last.
        bits (`int`): 2 to 8; 16 rounds to bfloat16 and 32 to float32.
        group_size (`int`, *optional*): inputs that share a scale; all inputs of a row by default. The last group of a
            row may be smaller.

    Raises:
        ValueError: for another number of bits, or a group size below 1.

    Example:

    ```python
    >>> import torch
    >>> from hf_warmscale.compression import fake_quantize
    >>> fake_quantize(torch.tensor([[0.0, 0.6, -7.5]]), bits=4)
    tensor([[ 0.,  1., -8.]])

    ```
    """
    check_bits(bits)
    check_group_size(group_size)
    if bits in FLOATS:
        return weight.to(FLOATS[bits]).to(weight.dtype)
    inputs = weight.shape[-1]
    size = min(group_size or inputs, inputs)
    # Zeros change neither a maximum nor anything else, so an uneven row is filled up with them.
    groups = torch.nn.functional.pad(weight, (0, -inputs % size)).unflatten(-1, (-1, size))
    # The scale is rounded to the dtype of the weight, the rest is computed in float32: so does torchao.
    largest = groups.abs().amax(dim=-1, keepdim=True)
    scale = (largest / ((2**bits - 1) / 2)).clamp(min=SMALLEST_SCALE).float()
    limit = 2 ** (bits - 1)
    integers = (groups * (1.0 / scale)).round().clamp(-limit, limit - 1)
    rounded: Tensor = (integers * scale).to(weight.dtype).flatten(-2)
    return rounded[..., :inputs]


def num_scales(shape: tuple[int, ...], group_size: int | None = None) -> int:
    """Return how many scales a weight `[..., out, in]` has."""
    *rows, inputs = shape
    return torch.Size(rows).numel() * ceil(inputs / (group_size or inputs))


def quantization_config(bits: int, group_size: int | None = None) -> "TorchAoConfig":
    """Return a `quantization_config` for `from_pretrained`: integer weights with torchao, on any device.

    The linear layers but the readout are quantized, activations are not. 8 bits without groups are torchao's int8 (one
    byte a weight in memory and in the file); fewer bits are its intx, which keeps every integer in a byte of its own.

    Args:
        bits (`int`): 2 to 8.
        group_size (`int`, *optional*): inputs that share a scale; all inputs of a row by default.

    Raises:
        ValueError: for another number of bits, or if torchao is not installed.

    Example:

    ```python
    >>> config = quantization_config(8)
    >>> model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M", quantization_config=config)
    >>> model.save_pretrained("smaller")
    ```
    """
    if bits not in INTEGER_BITS:
        raise ValueError(f"bits is {bits}; torchao's integer weights have 2 to 8.")
    check_group_size(group_size)
    from transformers import TorchAoConfig
    from transformers.utils.import_utils import is_torchao_available

    if not is_torchao_available():
        raise ValueError("torchao is not installed; pip install 'hf-warmscale[quantization]'.")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerAxis, PerGroup, PerRow

    if bits == 8:
        granularity = PerRow() if group_size is None else PerGroup(group_size)
        return TorchAoConfig(Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False))
    share = PerAxis(0) if group_size is None else PerGroup(group_size)
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=share))
