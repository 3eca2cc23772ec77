"""A sweep trains what it says, once, and goes on where it was stopped."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from hf_warmscale.tuning import Point, assert_lr_transfers, sweep

ROOT = Path(__file__).parents[2]
LRS = [2.0**exponent for exponent in range(-9, -3)]


def toy_loss(point: Point, drift: float = 0.0) -> float:
    """A parabola whose lowest point moves by `drift` octaves a doubling; the highest rate diverges."""
    if point.lr > 2**-4.5:
        return math.nan
    best = -6.5 + drift * math.log2(point.size / 16)
    return (math.log2(point.lr) - best) ** 2 + 0.01 * point.seed


def run(output: Path, train: object = toy_loss, jobs: int = 1, **study: object) -> object:
    return sweep(train, sizes=[16, 32], lrs=LRS, seeds=3, output=output, study=study, jobs=jobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grid_once_and_all_seeds_around_the_best(tmp_path: Path, jobs: int) -> None:
    run(tmp_path, jobs=jobs)
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


def test_assertion_for_own_models(tmp_path: Path) -> None:
    assert_lr_transfers(toy_loss, sizes=[16, 64], lrs=LRS, output=tmp_path / "steady")
    with pytest.raises(AssertionError, match=r"drifts, in octaves: 16: \+0\.00, 64: -1\.20"):
        assert_lr_transfers(partial(toy_loss, drift=-0.6), sizes=[16, 64], lrs=LRS, output=tmp_path / "drifting")


def test_one_size_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two sizes, and there are \[16\]"):
        assert_lr_transfers(toy_loss, sizes=[16], lrs=LRS, output=tmp_path)


def endless_loss(pids: Path, point: Point) -> float:
    """Say who trains, and never end."""
    (pids / str(os.getpid())).touch()
    time.sleep(600)
    return 0.0


@pytest.mark.slow
def test_workers_end_with_a_killed_sweep(tmp_path: Path) -> None:
    """SIGKILL of the sweep: no process stays behind, waiting for work for ever."""
    pids = tmp_path / "pids"
    pids.mkdir()
    program = (
        f"from pathlib import Path; from tests.tuning.test_sweep import *; sweep_for_ever(Path({str(tmp_path)!r}))"
    )
    sweeping = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_until(lambda: len(list(pids.iterdir())) == 2, sweeping)
    sweeping.kill()
    sweeping.wait()
    workers = [int(path.name) for path in pids.iterdir()]
    wait_until(lambda: not any(runs(pid) for pid in workers))


def sweep_for_ever(folder: Path) -> None:
    run(folder / "out", partial(endless_loss, folder / "pids"), jobs=2)


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, "the sweep ended by itself"
        assert time.monotonic() < end
        time.sleep(0.1)
