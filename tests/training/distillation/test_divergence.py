"""Divergences and their gradients against the formulas, by autograd in float64."""

import pytest
import torch
from torch import Tensor

from hf_warmscale.training.distillation.divergence import (
    DENSE,
    DIRECTIONS,
    OF_TOP,
    Direction,
    forward_kl,
    forward_kl_of_sample,
)

ROWS, VOCABULARY = 6, 17


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p, q), literally."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def both(direction: Direction, log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_p, log_q) if direction == "forward" else kl(log_q, log_p)


def random_logits(seed: int, *, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_value_and_gradient_of_all_tokens(direction: Direction) -> None:
    teacher, student = random_logits(0).log_softmax(-1), random_logits(1).requires_grad_()
    expected = both(direction, teacher, student.log_softmax(-1))
    (slope,) = torch.autograd.grad(expected.sum(), student)
    found = DENSE[direction](teacher, student.detach().log_softmax(-1))
    torch.testing.assert_close(found, (expected.detach(), slope), rtol=0, atol=1e-13)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1])
def test_value_and_gradient_of_the_top(direction: Direction, k: int) -> None:
    """The other tokens are one event, in teacher and student."""
    teacher, student = random_logits(0).log_softmax(-1), random_logits(1).requires_grad_()
    log_p, ids = teacher.topk(k)
    others = torch.ones_like(teacher, dtype=torch.bool).scatter(1, ids, False)

    def events(log_probs: Tensor) -> Tensor:
        tail = log_probs.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_probs.gather(1, ids), tail], dim=1)

    expected = both(direction, events(teacher), events(student.log_softmax(-1)))
    (slope,) = torch.autograd.grad(expected.sum(), student)
    found = OF_TOP[direction](ids, log_p, events(teacher)[:, -1], student.detach().log_softmax(-1))
    torch.testing.assert_close(found, (expected.detach(), slope), rtol=0, atol=1e-13)
    assert (found[0] <= both(direction, teacher, student.detach().log_softmax(-1)) + 1e-13).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_top_of_all_tokens_is_all_tokens(direction: Direction) -> None:
    """Also where probabilities underflow: the tail is empty, not 0 / 0."""
    teacher, log_q = random_logits(0).log_softmax(-1), random_logits(1, spread=60.0).log_softmax(-1).float()
    log_p, ids = teacher.float().topk(VOCABULARY)
    empty = torch.full((ROWS,), -torch.inf)
    found, expected = OF_TOP[direction](ids, log_p, empty, log_q), DENSE[direction](teacher.float(), log_q)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(each.isfinite().all() for each in found)


@pytest.mark.parametrize("likeliest", [1, 5])
def test_the_mean_over_the_draws_is_that_of_all_tokens(likeliest: int) -> None:
    """Value and gradient, over every token that can be drawn, in proportion to its probability."""
    log_p, log_q = random_logits(0).log_softmax(-1), random_logits(1).log_softmax(-1)
    ordered = log_p.argsort(dim=-1, descending=True)
    kept, others = ordered[:, :likeliest], ordered[:, likeliest:]
    log_tail = log_p.gather(1, others).logsumexp(dim=-1, keepdim=True)
    value, slope = torch.zeros(ROWS, dtype=torch.float64), torch.zeros_like(log_q)
    for drawn in others.split(1, dim=1):
        ids = torch.cat([kept, drawn], dim=1)
        chance = (log_p.gather(1, drawn) - log_tail).exp()
        weights = torch.cat([log_p.gather(1, kept), log_tail], dim=1)
        found = forward_kl_of_sample(ids, log_p.gather(1, ids), weights, log_q)
        value, slope = value + chance[:, 0] * found[0], slope + chance * found[1]
    torch.testing.assert_close((value, slope), forward_kl(log_p, log_q), rtol=0, atol=1e-13)
