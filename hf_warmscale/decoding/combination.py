"""Combine next-token distributions of a large base, a small base and small tuned models. Pure functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def combine_log_probs(
    base: Tensor,
    tuned: Sequence[Tensor],
    reference: Tensor,
    *,
    weights: Sequence[float],
    beta: float = 1.0,
    upscale_top_p: float | None = None,
) -> Tensor:
    """Return the log-probabilities of emulated fine-tuning (arXiv:2310.12962, section 3).

    With l of the large base, s of the small base and t_i of small models tuned from it, per step and normalised:

        log p = s + sum_i w_i (t_i - s) + beta (l - s) - log Z

    Args:
        base (`Tensor`): l, log-probabilities `[..., vocabulary]` of the large base.
        tuned (`Sequence[Tensor]`): t_i, in the same shape.
        reference (`Tensor`): s, in the same shape.
        weights (`Sequence[float]`): w_i, one per tuned model.
        beta (`float`): how much of the larger pretraining is added; 0 leaves the small models alone.
        upscale_top_p (`float`, *optional*): add l - s only to the nucleus of the tuned small model, the fewest tokens
            that hold this probability; elsewhere the ratio of large to small is often noise. No token is excluded.

    Example:

    ```python
    >>> emulated = combine_log_probs(large, [tuned], small, weights=[1.0])
    ```
    """
    small = reference + sum(weight * (each - reference) for weight, each in zip(weights, tuned, strict=True))
    upscaling = beta * (base - reference)
    if upscale_top_p is not None:
        # `small` is not normalised once a weight differs from 1 or there are several, and a nucleus is one of
        # probabilities.
        upscaling = upscaling.masked_fill(~nucleus(small.log_softmax(dim=-1), upscale_top_p), 0.0)
    return (small + upscaling).log_softmax(dim=-1)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Return a mask `[..., vocabulary]` of the fewest tokens whose probabilities sum to at least `top_p`."""
    ordered, order = log_probs.exp().sort(dim=-1, descending=True)
    # The mass of all likelier tokens. The token that crosses `top_p` still has less before it, so it is in; the first
    # always is.
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before < top_p)
