"""Which weights are the smallest, exactly, and what a schedule asks for."""

import pytest
import torch
from torch import Tensor

from hf_warmscale.compression.magnitude import check_schedule, extend_masks, nth_smallest, num_pruned, sparsity_at


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_masks_are_those_of_a_stable_sort(dtype: torch.dtype) -> None:
    """bfloat16 has many equal magnitudes; rounding to a grid makes as many in float32."""
    weights = {name: torch.randn(17, 5).mul(4).round().div(8).to(dtype) for name in "abc"}
    masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    together = torch.cat([weight.flatten() for weight in weights.values()])
    for count in (0, 1, 40, 41, 200, 254):
        extend_masks(weights.__getitem__, masks, count)
        chosen = together.float().abs().argsort(stable=True)[:count]
        expected = torch.zeros(len(together), dtype=torch.bool).index_fill(0, chosen, True)
        assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), expected)


def test_what_is_pruned_stays_so_whatever_became_of_its_weight() -> None:
    weights = {"a": torch.tensor([5.0, 1.0, 3.0, 0.0])}
    masks = {"a": torch.tensor([True, False, False, False])}
    extend_masks(weights.__getitem__, masks, 2)
    assert masks["a"].tolist() == [True, False, False, True]


def test_the_nth_smallest_over_parts() -> None:
    values = torch.randint(0, 2**31 - 1, (1000,), dtype=torch.int32)
    values[::7] = values[0]
    ordered = values.sort().values
    for count in (1, 2, 500, 999, 1000):
        found, ties = nth_smallest(lambda: iter(values.split(300)), count)
        assert found == ordered[count - 1] and ties == count - int((values < found).sum())


def test_a_schedule_holds_from_its_step_on() -> None:
    steps = [0, 9, 10, 19, 20, 29, 30, 10**6]
    assert [sparsity_at((0.15, 0.3, 0.9), 10, step) for step in steps] == [0, 0, 0.15, 0.15, 0.3, 0.3, 0.9, 0.9]
    assert num_pruned(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize(
    ("schedule", "every", "sentence"),
    [
        ((), 1, "is empty"),
        ((0.5, 1.0), 1, "A sparsity is 1; it is a share of zeros in"),
        ((0.0, 0.5), 1, "A sparsity is 0;"),
        ((-0.1,), 1, "A sparsity is -0.1;"),
        ((0.5, 0.5), 1, "does not ascend"),
        ((float("nan"),), 1, "A sparsity is nan;"),
        ((0.5,), 0, "every is 0"),
    ],
)
def test_bad_schedules_are_refused(schedule: tuple[float, ...], every: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_schedule(schedule, every)


def test_a_float64_weight_is_compared_in_float32() -> None:
    weight: Tensor = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64).flip(0)
    masks = {"a": torch.zeros(2, dtype=torch.bool)}
    extend_masks({"a": weight}.__getitem__, masks, 1)
    assert masks["a"].tolist() == [True, False]  # equal in float32: the first counts
