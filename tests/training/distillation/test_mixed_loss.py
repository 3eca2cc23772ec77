"""The chunked loss and its gradient by hand against one formula and autograd, whatever the chunks."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_warmscale.training.distillation import mixed_loss as module
from hf_warmscale.training.distillation.divergence import DIRECTIONS, Direction
from hf_warmscale.training.distillation.mixed_loss import MixedLoss, Pull, mixed_loss
from hf_warmscale.training.distillation.predictions import Logits

ROWS, TOKENS, VOCABULARY = 3, 5, 11


@pytest.fixture(autouse=True)
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two positions in a chunk, so that chunks end inside rows."""
    monkeypatch.setattr(module, "CPU_CHUNK_ELEMENTS", 2 * VOCABULARY + 1)


def made(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(ROWS, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype)


def targets() -> Tensor:
    ids = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(9))
    ids[:, -1] = ids[1, 0] = -100
    return ids


def naive(student: Tensor, teacher: Tensor, temperature: float, direction: Direction, ids: int) -> tuple[Tensor, ...]:
    """NLL and divergence of each position."""
    log_p, log_q = ((each[..., :ids] / temperature).log_softmax(-1) for each in (teacher, student))
    if direction == "reverse":
        log_p, log_q = log_q, log_p
    counts = targets() != -100
    nll = cross_entropy(student.flatten(0, 1), targets().flatten(), reduction="none").reshape(ROWS, TOKENS)
    return nll, (log_p.exp() * (log_p - log_q)).sum(-1) * counts


def agree(found: MixedLoss, expected: Tensor, student: Tensor) -> None:
    slope = torch.autograd.grad(found.total, student)
    wanted = torch.autograd.grad(expected, student)
    torch.testing.assert_close((found.total, slope), (expected, wanted), rtol=0, atol=1e-13)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("temperature", "ids"), [(1.0, VOCABULARY), (2.0, VOCABULARY), (1.0, VOCABULARY - 3)])
def test_loss_and_gradient(direction: Direction, temperature: float, ids: int) -> None:
    """Rows beyond the shared ids are padding of one of the two: they have a part in the cross-entropy alone."""
    student, teacher = made(0).requires_grad_(), made(1)
    nll, divergence = naive(student, teacher, temperature, direction, ids)
    pull = Pull(Logits(teacher.flatten(0, 1), ids), 0.7, temperature, direction)
    found = mixed_loss(student, targets(), [pull], nll_weight=0.3)
    torch.testing.assert_close(found.nll, nll.detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.divergence, divergence.detach(), rtol=0, atol=1e-13)
    agree(found, (0.3 * nll + 0.7 * temperature**2 * divergence).sum(), student)


def test_what_a_teacher_says_at_positions_that_do_not_count_is_never_read() -> None:
    student, teacher = made(0).requires_grad_(), made(1)
    teacher[targets() == -100] = torch.nan
    found = mixed_loss(student, targets(), [Pull(Logits(teacher.flatten(0, 1), VOCABULARY), 1.0)], nll_weight=0.3)
    assert found.total.isfinite()
    assert torch.autograd.grad(found.total, student)[0].isfinite().all()


@pytest.mark.parametrize("laid_out", ["rows", "tokens"])
def test_two_teachers_share_a_batch(laid_out: str) -> None:
    """Each is heard on its rows, or on its tokens where rows are laid end to end."""
    student, teacher, start = made(0).requires_grad_(), made(1), made(2)
    nll, first = naive(student, teacher, 2.0, "forward", VOCABULARY)
    _, second = naive(student, start, 1.0, "forward", VOCABULARY)
    if laid_out == "rows":
        heard = torch.tensor([False, True, True])[:, None].expand(ROWS, TOKENS)
        pulls = [
            Pull(Logits(teacher[1:].flatten(0, 1), VOCABULARY), 0.7, 2.0, rows=(1, 2)),
            Pull(Logits(start[:1].flatten(0, 1), VOCABULARY), 0.2, rows=(0,)),
        ]
    else:
        heard = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.5
        pulls = [
            Pull(Logits(teacher.flatten(0, 1), VOCABULARY), 0.7, 2.0, mask=heard),
            Pull(Logits(start.flatten(0, 1), VOCABULARY), 0.2, mask=~heard),
        ]
    found = mixed_loss(student, targets(), pulls, nll_weight=0.3)
    torch.testing.assert_close(found.divergence, torch.where(heard, first, second).detach(), rtol=0, atol=1e-13)
    agree(found, (0.3 * nll + torch.where(heard, 0.7 * 4 * first, 0.2 * second)).sum(), student)


def test_virtual_tokens_stand_before_what_the_teacher_read() -> None:
    student, teacher = made(0).requires_grad_(), made(1)
    labels = targets()
    labels[:, :2] = -100
    pull = Pull(Logits(teacher[:, 2:].flatten(0, 1), VOCABULARY), 1.0)
    found = mixed_loss(student, labels, [pull], nll_weight=0.0)
    _, divergence = naive(student, teacher, 1.0, "forward", VOCABULARY)
    agree(found, (divergence * (labels != -100)).sum(), student)


def test_the_same_logits_pull_with_no_force_at_all() -> None:
    student = made(0, torch.float32).requires_grad_()
    pull = Pull(Logits(student.detach().flatten(0, 1), VOCABULARY), 1.0)
    found = mixed_loss(student, targets(), [pull], nll_weight=0.0)
    found.total.backward()
    assert float(found.total) == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_rounds_the_gradient_once_or_twice(dtype: torch.dtype, error: float) -> None:
    """Scaled down by the tokens of a step and up by a loss scale, the gradient is that of the float32 formula."""
    student, teacher = made(0, dtype).requires_grad_(), made(1, dtype)
    nll, divergence = naive(student.float(), teacher.float(), 1.0, "forward", VOCABULARY)
    (wanted,) = torch.autograd.grad((0.5 * nll + 0.5 * divergence).sum() / 1e6 * 2.0**16, student)
    pull = Pull(Logits(teacher.flatten(0, 1), VOCABULARY), 0.5)
    found = mixed_loss(student, targets(), [pull], nll_weight=0.5).total
    assert found.dtype == torch.float32
    (slope,) = torch.autograd.grad(found / 1e6 * 2.0**16, student)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, wanted, rtol=2 * error, atol=1e-7)


def test_a_second_backward_pass_is_refused() -> None:
    student = made(0).requires_grad_()
    total = mixed_loss(student, targets(), [], nll_weight=1.0).total
    torch.autograd.backward(total, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(total)
