"""Merge methods: one contract for all, then each against its formula."""

from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from hf_warmscale.merging.methods import (
    dare,
    dare_mask,
    drop_and_rescale,
    linear,
    model_stock,
    slerp,
    task_arithmetic,
    ties,
    trim,
)

Merge = Callable[[Tensor, Sequence[Tensor], Sequence[float]], Tensor]

METHODS: dict[str, Merge] = {
    "linear": lambda base, tensors, weights: linear(tensors, weights),
    "task_arithmetic": task_arithmetic,
    "ties": lambda base, tensors, weights: ties(base, tensors, weights, density=0.5),
    "dare": lambda base, tensors, weights: dare(
        base, tensors, weights, density=0.5, keys=[str(float(tensor.flatten()[0])) for tensor in tensors]
    ),
    "dare_l1": lambda base, tensors, weights: dare(
        base, tensors, weights, density=0.5, keys=[str(float(x.flatten()[0])) for x in tensors], rescale="l1"
    ),
    "model_stock": lambda base, tensors, weights: model_stock(base, tensors),
}
WEIGHTS = (0.2, 0.3, 0.5)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """A base and three tensors whose differences from it point roughly the same way."""
    base, common = torch.randn(6, 10), torch.randn(6, 10)
    return base.to(dtype), [(base + 0.1 * common + 0.1 * torch.randn(6, 10)).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestContract:
    def test_the_dtype_stays(self, method: str, dtype: torch.dtype) -> None:
        base, tensors = inputs(dtype)
        assert METHODS[method](base, tensors, WEIGHTS).dtype == dtype

    def test_the_order_of_the_inputs_does_not_matter(self, method: str, dtype: torch.dtype) -> None:
        base, tensors = inputs(dtype)
        expected = METHODS[method](base, tensors, WEIGHTS)
        for order in permutations(range(3)):
            merged = METHODS[method](base, [tensors[index] for index in order], [WEIGHTS[index] for index in order])
            torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7)

    def test_inputs_are_untouched(self, method: str, dtype: torch.dtype) -> None:
        base, tensors = inputs(dtype)
        before = [tensor.clone() for tensor in (base, *tensors)]
        METHODS[method](base, tensors, WEIGHTS)
        assert all(torch.equal(a, b) for a, b in zip(before, (base, *tensors), strict=True))

    def test_equal_inputs_come_back_where_nothing_is_dropped(self, method: str, dtype: torch.dtype) -> None:
        base, (tensor, *_) = inputs(dtype)
        full: dict[str, Merge] = METHODS | {
            "ties": lambda base, tensors, weights: ties(base, tensors, weights, density=1.0),
            "dare": lambda base, tensors, weights: dare(base, tensors, weights, density=1.0, keys="abc"),
            "dare_l1": lambda base, tensors, weights: dare(
                base, tensors, weights, density=1.0, keys="abc", rescale="l1"
            ),
        }
        torch.testing.assert_close(full[method](base, [tensor] * 3, WEIGHTS), tensor, rtol=1e-6, atol=1e-7)

    def test_the_base_comes_back_where_nothing_was_learnt(self, method: str, dtype: torch.dtype) -> None:
        base, _ = inputs(dtype)
        torch.testing.assert_close(METHODS[method](base, [base] * 3, WEIGHTS), base, rtol=1e-6, atol=1e-7)


def test_linear_accumulates_wide() -> None:
    """In bfloat16 256 + 1 is 256; the sum of 256 and 32 ones, each with weight 1, is exact in wide precision."""
    tensors = [torch.full((3,), 256.0, dtype=torch.bfloat16)] + [torch.ones(3, dtype=torch.bfloat16)] * 32
    assert linear(tensors, [1.0] * 33).tolist() == [288.0] * 3


def test_slerp_walks_the_arc() -> None:
    """From (1, 0) to (0, 2) in thirds of 90 degrees: the directions turn, the sides are blended by sines."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([3**0.5 / 2, 1.0]))


def test_slerp_keeps_the_length_of_unit_tensors() -> None:
    a, b = (torch.nn.functional.normalize(torch.randn(50), dim=0) for _ in range(2))
    for fraction in (0.1, 0.5, 0.8):
        assert slerp(a, b, fraction).norm() == pytest.approx(1.0, abs=1e-6)
        torch.testing.assert_close(slerp(a, b, fraction), slerp(b, a, 1 - fraction))


@pytest.mark.parametrize("second", [[2.0, 0.001], [-1.0, 0.001], [0.0, 0.0]])
def test_slerp_is_a_line_between_parallel_tensors(second: list[float]) -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor(second)
    torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_task_arithmetic_adds_differences() -> None:
    base, tensors = inputs(torch.float64)
    weights = (0.7, 0.7, -0.2)
    expected = base + sum(weight * (tensor - base) for weight, tensor in zip(weights, tensors, strict=True))
    torch.testing.assert_close(task_arithmetic(base, tensors, weights), expected)


def test_ties_by_hand() -> None:
    """Keep 3 of 4 of each; column 0 agrees, in 1 the plus side wins 5 : 2, in 2 only one is left, 3 is trimmed."""
    base = torch.tensor([10.0, 10.0, 10.0, 10.0])
    deltas = [torch.tensor([1.0, 5.0, 3.0, 0.1]), torch.tensor([3.0, -2.0, 0.1, -1.0])]
    merged = ties(base, [base + delta for delta in deltas], [1.0, 1.0], density=0.75)
    torch.testing.assert_close(merged - base, torch.tensor([2.0, 5.0, 3.0, -1.0]))
    weighted = ties(base, [base + delta for delta in deltas], [1.0, 3.0], density=0.75)
    torch.testing.assert_close(weighted - base, torch.tensor([2.5, -2.0, 3.0, -1.0]))


def test_trim_keeps_the_largest() -> None:
    delta = torch.tensor([[0.1, -4.0], [3.0, 0.2]])
    assert trim(delta, 0.5).tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert torch.equal(trim(delta, 1.0), delta)
    assert trim(delta, 0.01).tolist() == [[0.0, -4.0], [0.0, 0.0]]


def test_trim_keeps_the_first_of_equal_magnitudes() -> None:
    delta = torch.tensor([2.0, -1.0, 1.0, 1.0, 3.0, 0.5])
    assert trim(delta, 4 / 6).tolist() == [2.0, -1.0, 1.0, 0.0, 3.0, 0.0]
    assert trim(torch.zeros(4), 0.5).tolist() == [0.0] * 4


def test_dare_divides_by_what_it_keeps() -> None:
    """`delta * mask / (1 - p)`: unbiased over masks (20000 masks: standard error 0.007 of the value)."""
    delta = torch.randn(20_000, dtype=torch.float64)
    mask = dare_mask(delta.shape, density=0.3, key="k")
    assert mask.double().mean() == pytest.approx(0.3, abs=0.01)
    kept = drop_and_rescale(delta, mask, density=0.3, rescale="density")
    assert torch.equal(kept, torch.where(mask, delta / 0.3, 0.0))
    constant = drop_and_rescale(torch.ones_like(delta), mask, density=0.3, rescale="density")
    assert constant.mean() == pytest.approx(1.0, abs=0.04)


def test_dare_l1_keeps_the_sum_of_magnitudes() -> None:
    delta = torch.randn(50, dtype=torch.float64)
    mask = dare_mask(delta.shape, density=0.3, key="k")
    kept = drop_and_rescale(delta, mask, density=0.3, rescale="l1")
    assert kept.abs().sum() == pytest.approx(float(delta.abs().sum()))
    assert torch.equal(kept != 0, mask)


def test_masks_hang_on_their_key() -> None:
    assert torch.equal(dare_mask([9], density=0.5, key="a"), dare_mask([9], density=0.5, key="a"))
    assert not torch.equal(dare_mask([99], density=0.5, key="a"), dare_mask([99], density=0.5, key="b"))


def test_model_stock_by_hand() -> None:
    """Two differences at 60 degrees: cos 1/2, t = 2/3; at a right angle the base is kept; aligned, the mean."""
    base = torch.zeros(2, dtype=torch.float64)
    slanted = torch.tensor([0.5, 3**0.5 / 2], dtype=torch.float64)
    across = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model_stock(base, [across, slanted]), (across + slanted) / 3)
    torch.testing.assert_close(model_stock(base, [across, across.flip(0)]), base)
    torch.testing.assert_close(model_stock(base, [across, 3 * across]), 2 * across)


def test_model_stock_stays_at_the_base_between_opposites() -> None:
    base, delta = torch.ones(4), torch.randn(4)
    torch.testing.assert_close(model_stock(base, [base + delta, base - 2 * delta]), base)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_without_dimensions_is_merged(method: str) -> None:
    """A learned scale or temperature, say."""
    base, tensors = torch.tensor(1.0), [torch.tensor(value) for value in (1.5, 2.0, 3.0)]
    merged = METHODS[method](base, tensors, WEIGHTS)
    assert merged.shape == () and bool(merged.isfinite())
    if method == "linear":
        assert float(merged) == pytest.approx(2.4)
