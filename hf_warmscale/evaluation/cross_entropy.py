"""The loss of single tokens: the one place in the package where it is computed."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""The label of a position without a target, as in torch and transformers."""

CHUNK_ELEMENTS = 2**24
"""Logits that are converted to float32 together: 64 MB."""


def token_nll(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the negative log-likelihood of each target, in nats.

    The log-softmax is taken in float32 (float64 for float64 logits), in chunks of rows, so that no float32 copy of
    all logits is made. Gradients flow through it.

    Args:
        logits (`Tensor`): `[..., vocab]`, any floating dtype.
        targets (`Tensor`): `[...]`, token ids; on the device of the logits.
        ignore_index (`int`): the target of positions that do not count; their loss is 0.

    Returns:
        `Tensor`: `[...]`, float32, or float64 for float64 logits, on the device of the logits. To sum many of them,
        see [`sum_dtype`].

    Example:

    ```python
    >>> nll = token_nll(model(input_ids=ids).logits[:, :-1], ids[:, 1:])
    ```
    """
    vocab_size = logits.shape[-1]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # `[rows, vocab]` per chunk. One row may exceed the chunk; it is not split.
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    chunks = logits.reshape(-1, vocab_size).split(rows)
    pairs = zip(chunks, targets.reshape(-1).split(rows), strict=True)
    nll = [F.cross_entropy(chunk.to(dtype), ids, reduction="none", ignore_index=ignore_index) for chunk, ids in pairs]
    return torch.cat(nll).reshape(targets.shape)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which losses are summed on `device`: float64 on the CPU, float32 elsewhere.

    Apple GPUs have no float64, and on other accelerators it is slow.

    Example:

    ```python
    >>> sum_dtype(torch.device("cpu"))
    torch.float64
    ```
    """
    return torch.float64 if device.type == "cpu" else torch.float32
