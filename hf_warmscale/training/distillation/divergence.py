"""Divergences between next-token distributions, each with its gradient. Pure functions of log-probabilities."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["forward", "reverse"]
"""Forward: KL(teacher, student), which covers all of the teacher. Reverse: KL(student, teacher), which seeks modes."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p, q) of each row and its gradient with respect to the logits of q.

    Args:
        log_p (`Tensor`): log-probabilities `[rows, vocabulary]` of the teacher.
        log_q (`Tensor`): of the student, in the same shape.

    Returns:
        `[rows]` in nats, and `[rows, vocabulary]`: q - p.

    Example:

    ```python
    >>> value, slope = forward_kl(teacher_logits.log_softmax(-1), student_logits.log_softmax(-1))
    ```
    """
    p = log_p.exp()
    return torch.linalg.vecdot(p, log_p - log_q), log_q.exp().sub_(p)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q, p) of each row and its gradient with respect to the logits of q, q (log q - log p - KL).

    Args:
        log_p, log_q (`Tensor`): as in `forward_kl`.
    """
    q, difference = log_q.exp(), log_q - log_p
    value = torch.linalg.vecdot(q, difference)
    return value, q.mul_(difference.sub_(value[:, None]))


def forward_kl_of_top(ids: Tensor, log_p: Tensor, log_tail: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p, q) over k named tokens and one event for all others, with its gradient.

    Merging the other tokens into one event can only lower a divergence, so this is a lower bound of `forward_kl`; with
    k the vocabulary the two are equal.

    Args:
        ids (`Tensor`): token ids `[rows, k]`, int64, without repetition.
        log_p (`Tensor`): their log-probabilities `[rows, k]` under the teacher.
        log_tail (`Tensor`): that of all other tokens together, `[rows]`; minus infinity where there is none.
        log_q (`Tensor`): log-probabilities `[rows, vocabulary]` of the student.
    """
    top_q, rest, log_tail_q = _events(ids, log_q)
    top_p, log_tail = log_p.exp(), _floored(log_tail)
    value = torch.linalg.vecdot(top_p, log_p - top_q) + log_tail.exp() * (log_tail - log_tail_q)
    # Of a token outside the k: d log(tail of q) / d logit_j = q_j / tail - q_j.
    slope = rest.mul_(1 - (log_tail - log_tail_q).exp()[:, None])
    return value, slope.scatter_(1, ids, top_q.exp() - top_p)


def reverse_kl_of_top(ids: Tensor, log_p: Tensor, log_tail: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q, p) over k named tokens and one event for all others, with its gradient.

    Args:
        ids, log_p, log_tail, log_q (`Tensor`): as in `forward_kl_of_top`.
    """
    top_q, rest, log_tail_q = _events(ids, log_q)
    q, difference, tail_difference = top_q.exp(), top_q - log_p, log_tail_q - _floored(log_tail)
    value = torch.linalg.vecdot(q, difference) + log_tail_q.exp() * tail_difference
    slope = rest.mul_((tail_difference - value)[:, None])
    return value, slope.scatter_(1, ids, q * (difference - value[:, None]))


def forward_kl_of_sample(ids: Tensor, log_p: Tensor, log_weight: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return an unbiased estimate of KL(p, q) from some tokens, with its gradient with respect to the logits of q.

    A token that is listed for certain has its probability as its weight; one that was drawn from the others has the
    mass of the others over the number of draws. The weights of a row then add up to 1, and the expected weight of
    every token is its probability, so the mean of value and gradient over the draws is that of `forward_kl`. A
    reverse divergence has no such estimate: it is a mean over the student's tokens, which the teacher did not draw.

    Args:
        ids (`Tensor`): token ids `[rows, k]`, int64; a token may be listed more than once.
        log_p (`Tensor`): their log-probabilities `[rows, k]` under the teacher.
        log_weight (`Tensor`): the logarithm of what each of them stands for, `[rows, k]`.
        log_q (`Tensor`): log-probabilities `[rows, vocabulary]` of the student.
    """
    weight = log_weight.exp()
    value = torch.linalg.vecdot(weight, log_p - log_q.gather(1, ids))
    return value, log_q.exp().scatter_add_(1, ids, -weight)


DENSE: dict[Direction, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
}
OF_TOP: dict[Direction, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": forward_kl_of_top,
    "reverse": reverse_kl_of_top,
}


def _events(ids: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log q of the k tokens, q of the others (0 at the k), and the logarithm of the sum of the latter."""
    rest = log_q.exp().scatter_(1, ids, 0.0)
    # A sum of what is left, not 1 minus the sum of the k: that would lose all digits of a small tail.
    return log_q.gather(1, ids), rest, _floored(rest.sum(dim=1).log())


def _floored(log_tail: Tensor) -> Tensor:
    """Return a finite logarithm also of an empty tail: with k the vocabulary there is nothing in it."""
    return log_tail.clamp_min(math.log(torch.finfo(log_tail.dtype).tiny))
