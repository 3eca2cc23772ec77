"""Negative log-likelihood of target tokens, without a float32 copy of all the logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**24


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, in nats.

    The log-softmax is taken in float32, or in float64 if the logits are float64, over chunks of rows: the extra
    memory is some 64 MB whatever the vocabulary.

    Args:
        logits (`Tensor`): `[..., vocab]`, any floating dtype.
        targets (`Tensor`): `[...]`, token ids.

    Returns:
        `Tensor`: `[...]`, float64.
    """
    vocab_size = logits.shape[-1]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    chunks = torch.split(logits.reshape(-1, vocab_size), rows)
    pairs = zip(chunks, torch.split(targets.reshape(-1), rows), strict=True)
    nll = [F.cross_entropy(chunk.to(dtype), ids, reduction="none").double() for chunk, ids in pairs]
    return torch.cat(nll).reshape(targets.shape)
