"""A plan is made once, in its order, with what waits for another run behind it; a killed one leaves no worker."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from hf_warmscale.studies import PlannedRun, Study, open_study, run_all, workers

ROOT = Path(__file__).parents[2]
PLAN = [PlannedRun("grown", after=("base",)), PlannedRun("base"), *(PlannedRun(f"other-{i}") for i in range(4))]


def study(folder: Path) -> Study:
    return open_study(folder, {"what": "a test"})


def noted(made: list[str], run: PlannedRun) -> Mapping[str, Any]:
    made.append(run.name)
    return {}


def test_what_waits_for_another_run_comes_after_it(tmp_path: Path) -> None:
    made: list[str] = []
    run_all(study(tmp_path), PLAN, partial(noted, made))
    assert made == ["base", "grown", "other-0", "other-1", "other-2", "other-3"]
    run_all(study(tmp_path), PLAN, partial(noted, made))
    assert len(made) == 6


def test_an_interrupted_plan_goes_on(tmp_path: Path) -> None:
    made: list[str] = []

    def stopping(run: PlannedRun) -> Mapping[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        return noted(made, run)

    with pytest.raises(KeyboardInterrupt):
        run_all(study(tmp_path), PLAN, stopping)
    run_all(study(tmp_path), PLAN, partial(noted, made))
    assert sorted(made) == sorted(run.name for run in PLAN)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ([PlannedRun("a", after=("b",))], "'a' waits for 'b', which can never start"),
        ([PlannedRun("a", after=("b",)), PlannedRun("b", after=("a",))], "waits for"),
        ([PlannedRun("a"), PlannedRun("a")], "Two runs of the study are called 'a'"),
    ],
    ids=["missing", "circle", "twice"],
)
def test_a_plan_that_cannot_end_is_refused(tmp_path: Path, plan: list[PlannedRun], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_all(study(tmp_path), plan, lambda run: pytest.fail("it ran"))


def test_a_stored_run_need_not_be_planned(tmp_path: Path) -> None:
    opened = study(tmp_path)
    opened.attempt("base", dict, {})
    run_all(opened, [PlannedRun("grown", after=("base",))], lambda run: {})
    assert opened.has("grown")


def who(run: PlannedRun) -> Mapping[str, Any]:
    time.sleep(0.05)
    return {"pid": os.getpid()}


def fail_at_once(run: PlannedRun) -> Mapping[str, Any]:
    raise OSError("the disk")


@pytest.mark.slow
def test_several_workers_share_a_plan(tmp_path: Path) -> None:
    opened = study(tmp_path)
    with workers(2) as pool:
        run_all(opened, PLAN, who, pool=pool)
        pids = [json.loads(opened.path(run.name).read_text())["pid"] for run in PLAN]
        assert os.getpid() not in pids
        with pytest.raises(OSError, match="the disk"):
            run_all(opened, [PlannedRun("more")], fail_at_once, pool=pool)
    assert not list(tmp_path.rglob("*.lock"))


def endless(pids: Path, run: PlannedRun) -> Mapping[str, Any]:
    """Say who runs, and never end."""
    (pids / str(os.getpid())).touch()
    time.sleep(600)
    return {}


def run_for_ever(folder: Path) -> None:
    with workers(2) as pool:
        run_all(study(folder / "out"), PLAN[2:], partial(endless, folder / "pids"), pool=pool)


@pytest.mark.slow
def test_workers_end_with_a_killed_study(tmp_path: Path) -> None:
    """SIGKILL of the study: no process stays behind, waiting for work for ever, and its runs are free again."""
    pids = tmp_path / "pids"
    pids.mkdir()
    program = f"from tests.studies.test_plan import *; run_for_ever(Path({str(tmp_path)!r}))"
    running = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_until(lambda: len(list(pids.iterdir())) == 2, running)
    running.kill()
    running.wait()
    left = [int(path.name) for path in pids.iterdir()]
    wait_until(lambda: not any(runs(pid) for pid in left))
    made: list[str] = []
    run_all(study(tmp_path / "out"), PLAN[2:], partial(noted, made))
    assert len(made) == 4


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, "the study ended by itself"
        assert time.monotonic() < end
        time.sleep(0.1)
