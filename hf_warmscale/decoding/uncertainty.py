"""How uncertain a model is about sequences, and which threshold to set. Pure functions of tensors."""

import torch
from torch import Tensor


def mean_entropy(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Return the mean entropy of each sequence, `[batch]`, in nats per token.

    Args:
        log_probs (`Tensor`): `[batch, tokens, vocabulary]`.
        mask (`Tensor`): `[batch, tokens]`, 0 where there is padding.
    """
    return masked_mean(torch.special.entr(log_probs.exp()).sum(dim=-1), mask)


def mean_kl(target: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of KL(target || other) of each sequence, `[batch]`, in nats per token.

    Args:
        target, other (`Tensor`): log-probabilities `[batch, tokens, vocabulary]`.
        mask (`Tensor`): `[batch, tokens]`, 0 where there is padding.
    """
    divergence = torch.nn.functional.kl_div(other, target, reduction="none", log_target=True).sum(dim=-1)
    return masked_mean(divergence, mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `[batch, tokens]` over the tokens whose mask is not 0."""
    kept = mask.to(values.dtype)
    return (values * kept).sum(dim=1) / kept.sum(dim=1)


def best_threshold(scores: Tensor, clean_loss: Tensor, robust_loss: Tensor) -> float:
    """Return the threshold at which taking the robust loss above it gives the smallest total loss.

    It lies midway between two neighbouring scores, or is infinite where one head is best for all.

    Args:
        scores, clean_loss, robust_loss (`Tensor`): `[sequences]`.
    """
    # To the CPU first: not every device has float64.
    ordered, order = scores.cpu().double().sort()
    saved = (clean_loss - robust_loss).cpu().double()[order]  # by taking the robust head
    totals = torch.cat([saved.flip(0).cumsum(0).flip(0), saved.new_zeros(1)])  # robust from this position on
    between = (ordered[1:] + ordered[:-1]) / 2
    # Cut i sends the sequences from i on to the robust head: all at -inf, none at +inf.
    cuts = torch.cat([ordered.new_tensor([-torch.inf]), between, ordered.new_tensor([torch.inf])])
    # No threshold lies between equal scores.
    distinct = torch.cat([ordered.new_ones(1), ordered[1:] > ordered[:-1], ordered.new_ones(1)]).bool()
    return float(cuts[totals.masked_fill(~distinct, -torch.inf).argmax()])
