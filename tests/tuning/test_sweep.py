"""A sweep trains what it says, once, and goes on where it was stopped."""

import json
import math
from functools import partial
from pathlib import Path

import pytest

from hf_warmscale.mup import MupConfig
from hf_warmscale.tuning import Point, assert_lr_transfers, sweep
from hf_warmscale.tuning.ladder import Axis, at_size, describe_study

LRS = [2.0**exponent for exponent in range(-9, -3)]


def toy_loss(point: Point, drift: float = 0.0) -> float:
    """A parabola whose lowest point moves by `drift` octaves a doubling; the highest rate diverges."""
    if point.lr > 2**-4.5:
        return math.nan
    best = -6.5 + drift * math.log2(point.size / 16)
    return (math.log2(point.lr) - best) ** 2 + 0.01 * point.seed


def run(output: Path, train: object = toy_loss, **study: object) -> object:
    return sweep(train, sizes=[16, 32], lrs=LRS, seeds=3, output=output, study=study)  # type: ignore[arg-type]


def test_grid_once_and_all_seeds_around_the_best(tmp_path: Path) -> None:
    run(tmp_path)
    stored = [json.loads(path.read_text()) for path in (tmp_path / "runs").iterdir()]
    for size in (16, 32):
        seeds = {lr: sorted(run["seed"] for run in stored if (run["size"], run["lr"]) == (size, lr)) for lr in LRS}
        assert [len(each) for each in seeds.values()] == [1, 3, 3, 3, 1, 1]
    assert {run["loss"] for run in stored if run["lr"] == LRS[-1]} == {None}


def test_what_is_stored_is_not_repeated(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    trained: list[Point] = []

    def stopping(point: Point) -> float:
        if len(trained) == 7:
            raise Stopped
        trained.append(point)
        return toy_loss(point)

    with pytest.raises(Stopped):
        run(tmp_path, stopping)

    again: list[Point] = []

    def counting(point: Point) -> float:
        again.append(point)
        return toy_loss(point)

    resumed = run(tmp_path, counting)
    assert not set(trained) & set(again)
    assert resumed == run(tmp_path / "fresh")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_is_for_one_study(tmp_path: Path) -> None:
    run(tmp_path, steps=500)
    with pytest.raises(ValueError, match="holds the runs of another study"):
        run(tmp_path, steps=400)


def test_rates_must_ascend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least three, different and ascending"):
        sweep(toy_loss, sizes=[16], lrs=[2.0, 1.0, 4.0], seeds=1, output=tmp_path, study={})


@pytest.mark.parametrize("lr", [0.0, -0.1, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused_before_anything_is_written(lr: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The learning rate is .*; give a positive number"):
        sweep(toy_loss, sizes=[16], lrs=[0.1, 0.2, lr], seeds=1, output=tmp_path / "out", study={})
    assert not (tmp_path / "out").exists()


def test_assertion_for_own_models(tmp_path: Path) -> None:
    assert_lr_transfers(toy_loss, sizes=[16, 64], lrs=LRS, output=tmp_path / "steady")
    with pytest.raises(AssertionError, match=r"drifts, in octaves: 16: \+0\.00, 64: -1\.20"):
        assert_lr_transfers(partial(toy_loss, drift=-0.6), sizes=[16, 64], lrs=LRS, output=tmp_path / "drifting")


def test_another_function_is_not_taken_for_the_stored_one(tmp_path: Path) -> None:
    assert_lr_transfers(toy_loss, sizes=[16, 64], lrs=LRS, output=tmp_path)
    for other in (partial(toy_loss, drift=-0.6), lambda point: toy_loss(point)):
        with pytest.raises(ValueError, match=r"holds the runs of another study: config\.train"):
            assert_lr_transfers(other, sizes=[16, 64], lrs=LRS, output=tmp_path)


@pytest.mark.parametrize(
    ("axis", "sizes", "other"),
    [("width", (32, 64), {"num_attention_heads": 4}), ("depth", (2, 4), {"hidden_size": 64})],
)
def test_sizes_may_be_added_to_a_study(axis: Axis, sizes: tuple[int, int], other: dict[str, int]) -> None:
    config = MupConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        mup={"base_hidden_size": 32},
    )
    one, two = (describe_study({}, at_size(config, axis, size), axis) for size in sizes)
    assert one == two != describe_study({}, config.resized(**other), axis)


def test_one_size_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two sizes, and there are \[16\]"):
        assert_lr_transfers(toy_loss, sizes=[16], lrs=LRS, output=tmp_path)
