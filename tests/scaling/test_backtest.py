"""The rollout predicts what it has not seen, and its baselines are what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_warmscale import fit_scaling_law
from hf_warmscale.scaling import Frame, hold_out, make_frame, roll_out
from hf_warmscale.scaling.backtest import rung_numbers
from tests.scaling.measurements import gemstones, ladder, true_loss


def frame(**changes: Any) -> Frame:
    return make_frame({**ladder(noise=0.005), **changes}, "chinchilla")


def test_a_true_law_is_rolled_out_without_error() -> None:
    found = roll_out(make_frame(ladder(), "chinchilla"), "chinchilla")
    assert [step.num_test for step in found.steps] == [4, 4]
    assert found.law is not None and found.last_value is not None and found.log_linear is not None
    assert found.law.mare < 1e-4 < found.log_linear.mare < found.last_value.mare


def test_a_step_does_not_see_what_it_predicts() -> None:
    rows = ladder(noise=0.005)
    changed = np.where(rows["N"] == rows["N"].max(), 2 * rows["loss"], rows["loss"])
    usual, other = (roll_out(frame(loss=loss), "chinchilla").steps[-1] for loss in (rows["loss"], changed))
    assert usual.predicted == other.predicted
    assert other.law.mare > usual.law.mare


def test_the_baselines_by_hand() -> None:
    n, d = np.array([1e7, 2e7, 4e7, 8e7] * 2), np.array([1e9] * 4 + [4e9] * 4)
    rows = {"N": n, "D": d, "loss": true_loss(n, d)}
    points = make_frame(rows, "chinchilla")
    step = hold_out(points, points.N < 5e7, points.N > 5e7, "chinchilla")
    budgets = np.array([1e9, 4e9])
    off = np.abs(true_loss(4e7, budgets) / true_loss(8e7, budgets) - 1)
    assert step.last_value.mare == pytest.approx(off.mean())
    assert step.last_value.largest == pytest.approx(off.max())
    straight = make_frame({**rows, "loss": np.exp(3 - 0.1 * np.log(points.N) - 0.02 * np.log(points.D))}, "chinchilla")
    assert hold_out(straight, points.N < 5e7, points.N > 5e7, "chinchilla").log_linear.mare < 1e-12


def test_sizes_close_together_are_one_rung() -> None:
    assert rung_numbers(np.array([4.0, 1.0, 1.1, 1.24, 1.3, 2.0])).tolist() == [3, 0, 0, 0, 1, 2]


def test_too_few_sizes_have_no_rollout() -> None:
    points = frame()
    found = roll_out(points.where(points.N < 5e7), "chinchilla")
    assert found.steps == () and found.law is None and found.table() == []


def test_a_fit_brings_its_backtest() -> None:
    law = fit_scaling_law(ladder(noise=0.005))
    assert law.backtest.to_dict() == roll_out(make_frame(ladder(noise=0.005), "chinchilla"), "chinchilla").to_dict()
    assert law.backtest.table()[-1]["points"] == 8


def test_cooled_gemstones_below_1b_predict_those_above_1_5b(data: Path) -> None:
    points = make_frame(gemstones(data), "chinchilla")
    step = hold_out(points, points.N < 1e9, points.N > 1.5e9, "chinchilla")
    assert (step.num_train, step.num_test) == (140, 29)
    assert step.law.mare <= 0.018
    assert step.law.mare < min(step.last_value.mare, step.log_linear.mare)
