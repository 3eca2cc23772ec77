"""The schedules are the formulas of 2403.08763 and 2405.18392, and only position survives a checkpoint."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_warmscale.training import Schedule, StageLR, get_schedule, plot_schedule

PAPER = {"total_steps": 10_000, "learning_rate": 3e-4, "constant_lr": 1.65e-4, "min_lr": 3e-5}
"""The 405M run of 2403.08763: warmup 1%, cooldown 60%, constant 25%."""

TABLE = {
    50: (1.5e-4, 1.5e-4),
    100: (3e-4, 3e-4),
    1_000: (2.9264294038e-4, 2.2896305074e-4),
    3_100: (2.325e-4, 1.8562952287e-4),
    6_100: (1.65e-4, 1.65e-4),
    8_600: (1.65e-4, 1.65e-4),
    9_300: (7.0356236397e-5, 7.0356236397e-5),
    10_000: (3e-5, 3e-5),
}
"""Steps done, cosine, inverse square root with alpha 10."""


@pytest.mark.parametrize("steps", TABLE)
def test_infinite_schedules_give_the_table(steps: int) -> None:
    for name, expected in zip(("infinite_cosine", "infinite_inv_sqrt"), TABLE[steps], strict=True):
        schedule = get_schedule(name, **PAPER, warmup=0.01, cooldown=0.6, constant=0.25, timescale=10)
        assert schedule(steps - 1) == pytest.approx(expected, rel=1e-10)
        assert schedule.factor(steps - 1) == schedule(steps - 1) / 3e-4


def infinite(t: int, cooldown: str, alpha: float = 10.0) -> float:
    """The infinite schedules of the paper, written down once more."""
    w, k, c, total = 100, 6_000, 2_500, 10_000
    peak, plateau, floor = 3e-4, 1.65e-4, 3e-5
    if t <= w:
        return peak * t / w
    if t - w <= k:
        x = (t - w) / k
        if cooldown == "cosine":
            return plateau + (peak - plateau) / 2 * (1 + math.cos(math.pi * x))
        return peak + (plateau - peak) * (1 / math.sqrt(1 + alpha * x) - 1) / (1 / math.sqrt(1 + alpha) - 1)
    if t - w - k <= c:
        return plateau
    ratio: float = (floor / plateau) ** ((t - w - k - c) / (total - w - k - c))
    return plateau * ratio


@pytest.mark.parametrize(("name", "cooldown"), [("infinite_cosine", "cosine"), ("infinite_inv_sqrt", "inv-sqrt")])
def test_infinite_schedules_are_the_formula_at_every_step(name: str, cooldown: str) -> None:
    schedule = get_schedule(name, **PAPER)
    for step in range(0, 10_000, 37):
        assert schedule(step) == pytest.approx(infinite(step + 1, cooldown), rel=1e-12)


def test_rewarm_cosine_is_equations_1_and_2() -> None:
    schedule = get_schedule("rewarm_cosine", total_steps=1_000, learning_rate=3e-4, warmup=10)
    for step in range(1_000):
        t = step + 1
        decay = 3e-5 + 2.7e-4 / 2 * (1 + math.cos(math.pi * (t - 10) / 990))
        assert schedule(step) == pytest.approx(3e-4 * t / 10 if t <= 10 else decay, rel=1e-12)
    assert schedule(999) == pytest.approx(3e-5, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "falls"),
    [
        ("linear", lambda p: 1 - p),
        ("1-sqrt", lambda p: 1 - math.sqrt(p)),
        ("cosine", lambda p: (1 + math.cos(math.pi * p)) / 2),
        ("exponential", lambda p: 2 * 0.5**p - 1),
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_reaches_its_floor_in_the_last_step(shape: str, falls, floor: float) -> None:  # type: ignore[no-untyped-def]
    schedule = get_schedule(
        "wsd", total_steps=100, learning_rate=1.0, min_lr=floor, warmup=10, cooldown=20, cooldown_shape=shape
    )
    assert [schedule(step) for step in (0, 9, 10, 79)] == [0.1, 1.0, 1.0, 1.0]
    for step in range(80, 100):
        assert schedule(step) == pytest.approx(floor + (1 - floor) * falls((step + 1 - 80) / 20), abs=1e-12)
    assert schedule(99) == pytest.approx(floor, abs=1e-12)


def test_one_minus_sqrt_without_the_last_step_ends_where_transformers_ends() -> None:
    """t = s stops at p = 9/10, which for 1-sqrt is 5% of the peak."""
    schedule = get_schedule(
        "wsd", total_steps=100, learning_rate=1.0, min_lr=0.0, warmup=0, cooldown=10, step_offset=0
    )
    assert schedule(99) == pytest.approx(0.0513167, abs=1e-7)


def test_first_step_is_not_wasted_unless_asked() -> None:
    ours = get_schedule("constant", total_steps=10, learning_rate=1.0, warmup=4)
    theirs = get_schedule("constant", total_steps=10, learning_rate=1.0, warmup=4, step_offset=0)
    assert [ours(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [theirs(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_phases_in_steps_fractions_and_tokens_agree() -> None:
    in_steps = {"warmup": 100, "cooldown": 6_000, "constant": 2_500}
    in_fractions = {"warmup": 0.01, "cooldown": 0.6, "constant": 0.25}
    in_tokens = {"warmup": "200K tokens", "cooldown": "12M tokens", "constant": "0.005B tokens"}
    same = [
        get_schedule("infinite_cosine", **PAPER, tokens_per_step=2_000, **phases)
        for phases in (in_steps, in_fractions, in_tokens)
    ]
    for step in range(0, 10_000, 501):
        assert len({round(schedule(step), 18) for schedule in same}) == 1


def test_no_warmup_starts_at_the_peak() -> None:
    assert get_schedule("rewarm_cosine", total_steps=10, learning_rate=1.0, warmup=0, step_offset=0)(0) == 1.0


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"name": "rewarm_cosin"}, "did you mean 'rewarm_cosine'"),
        ({"name": "wsd", "warmpu": 3}, "did you mean 'warmup'"),
        ({"name": "wsd", "cooldown_shape": "sqrt"}, "did you mean '1-sqrt'"),
        ({"name": "wsd", "warmup": 8, "cooldown": 5, "total_steps": 10, "learning_rate": 1.0}, "13 steps"),
        ({"name": "constant", "cooldown": 5}, "has no cooldown"),
        ({"name": "rewarm_cosine", "warmup": 1.5}, "as a float up to 1.0"),
        ({"name": "rewarm_cosine", "warmup": "5 apples"}, "not a number of tokens"),
        ({"name": "rewarm_cosine", "min_lr": 2.0, "total_steps": 10, "learning_rate": 1.0}, "between 0 and the peak"),
        ({"name": "infinite_cosine", "min_lr": 0.0, "total_steps": 10, "learning_rate": 1.0}, "positive min_lr"),
        ({"name": "rewarm_cosine", "learning_rate": -1.0}, "at least 0"),
    ],
)
def test_bad_schedules_are_refused_in_a_sentence(parameters: dict[str, float | str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        get_schedule(**parameters)  # type: ignore[arg-type]


def test_unresolved_schedule_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="pass learning_rate"):
        get_schedule("constant", total_steps=3)(0)
    with pytest.raises(ValueError, match="pass tokens_per_step"):
        get_schedule("constant", total_steps=3, learning_rate=1.0, warmup="3 tokens")(0)


def test_schedule_longer_than_its_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="20 steps long and the stage only 10"):
        get_schedule("constant", total_steps=20).resolve(total_steps=10, learning_rate=1.0)


# ---- The torch scheduler ----


def two_groups() -> torch.optim.Optimizer:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([{"params": [first], "lr": 1e-2}, {"params": [second], "lr": 2.5e-3}])


def schedule_of_ten(peak: float = 1e-2) -> Schedule:
    return get_schedule("rewarm_cosine", total_steps=10, learning_rate=peak, warmup=2)


def test_ratios_between_groups_never_change() -> None:
    optimizer = two_groups()
    scheduler = StageLR(optimizer, schedule_of_ten())
    for step in range(10):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(schedule_of_ten()(step), rel=1e-15)
        assert first / second == pytest.approx(4.0, rel=1e-15)
        optimizer.step()
        scheduler.step()


def test_state_is_plain_json_and_restores_only_the_position() -> None:
    optimizer = two_groups()
    scheduler = StageLR(optimizer, schedule_of_ten())
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    state = json.loads(json.dumps(scheduler.state_dict()))
    other = two_groups()
    resumed = StageLR(other, get_schedule("constant", total_steps=10, learning_rate=1e-2, warmup=10))
    resumed.load_state_dict(state)
    assert resumed.last_epoch == 5
    assert [group["lr"] for group in other.param_groups] == pytest.approx([6e-3, 1.5e-3], rel=1e-15)
    same = StageLR(two_groups(), schedule_of_ten())
    same.load_state_dict(state)
    assert same.get_last_lr() == scheduler.get_last_lr()


def test_picture_is_written(tmp_path: Path) -> None:
    plot_schedule(get_schedule("infinite_cosine", **PAPER), tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes()[:4] == b"\x89PNG"
