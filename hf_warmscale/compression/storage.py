"""How many bytes a weight takes on disk when it is stored without waste."""

from math import ceil

from torch import Tensor

from hf_warmscale.compression.quantization import FLOATS, SCALE_BYTES, num_scales

MODEL = (
    "Integers are packed without gaps, each scale is a float32. A pruned weight is one bit of mask a value and its "
    "nonzero values, or all values where that is less. All other weights are as they were."
)
"""The sentence that goes with every number of bytes."""


def stored_bytes(
    weight: Tensor, bits: int | None = None, group_size: int | None = None, *, sparse: bool = False
) -> int:
    """Return the bytes of a weight, its scales and its mask included.

    Args:
        weight (`Tensor`): `[..., out, in]` as it is used, with its zeros.
        bits (`int`, *optional*): of a value; those of the weight's dtype by default.
        group_size (`int`, *optional*): inputs that share a scale.
        sparse (`bool`): the weight was pruned, so its zeros need not be stored.

    Example:

    ```python
    >>> import torch
    >>> from hf_warmscale.compression.storage import stored_bytes
    >>> stored_bytes(torch.ones(4, 32)), stored_bytes(torch.ones(4, 32), bits=8)
    (512, 144)

    ```
    """
    value = 8 * weight.element_size() if bits is None else bits
    scales = 0 if bits is None or bits in FLOATS else SCALE_BYTES * num_scales(tuple(weight.shape), group_size)
    dense = ceil(weight.numel() * value / 8)
    if not sparse:
        return dense + scales
    masked = ceil(weight.numel() / 8) + ceil(int(weight.count_nonzero()) * value / 8)
    return min(dense, masked) + scales
