"""A search that is killed, helped, or shared by the processes of one launch: the trials stay the same."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hf_warmscale.merging import search_merge
from hf_warmscale.merging.search.journal import open_storage
from tests.merging.trained import documents

N_TRIALS = 11
KILLS = 10  # a child that is killed within 13 entries finishes one trial at most
CLEAN = multiprocessing.get_context("forkserver")  # a fork of this process would inherit locks of its threads
CLEAN.set_forkserver_preload(["hf_warmscale.merging", "hf_warmscale.merging.search.search", "tests.merging.trained"])


def search(checkpoints: list[Path], storage: Path | str) -> None:
    texts = documents()
    search_merge(
        checkpoints, select=texts[::2], confirm=texts[1::2], n_trials=N_TRIALS, tolerance=0.0, storage=storage
    )


def finished(storage: Path | str) -> list[tuple[dict[str, float], float]]:
    opened = open_storage(storage)
    (study,) = opened.get_all_studies()
    trials = opened.get_all_trials(study._study_id, states=(TrialState.COMPLETE,))
    return [(trial.params, trial.values[0]) for trial in trials]


def search_until_entry(checkpoints: list[Path], journal: Path, count: int) -> None:
    """Search, and be killed right after the `count`-th entry that this process writes to the journal."""
    append, written = JournalFileBackend.append_logs, 0

    def append_and_die(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal written
        append(self, logs)
        written += len(logs)
        if written >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    JournalFileBackend.append_logs = append_and_die  # type: ignore[method-assign]
    search(checkpoints, journal)


def test_a_search_killed_again_and_again_tries_the_same_points(trajectory: list[Path], tmp_path: Path) -> None:
    """SIGKILL after ever other entries of the journal, and on at once: no finished trial is lost, none is another."""
    search(trajectory[-2:], tmp_path / "whole.log")
    whole, journal, kills = finished(tmp_path / "whole.log"), tmp_path / "killed.log", 0
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the kills: {seed}")
    entries = random.Random(seed)
    done: list[tuple[dict[str, float], float]] = []
    while kills < KILLS or len(done) < len(whole):
        process = CLEAN.Process(target=search_until_entry, args=(trajectory[-2:], journal, entries.randint(1, 13)))
        process.start()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        before, done = done, finished(journal) if journal.exists() else []
        assert done[: len(before)] == before
        assert done == whole[: len(done)]
        if process.exitcode == 0:
            break
    print(f"{kills} kills")
    search(trajectory[-2:], journal)
    assert finished(journal) == whole
    assert kills >= KILLS


@pytest.mark.parametrize("form", ["{}/shared.log", "sqlite:///{}/shared.db"])
def test_two_processes_share_a_study(form: str, trajectory: list[Path], tmp_path: Path) -> None:
    """They start at once, so that both would make the journal or the tables."""
    storage = form.format(tmp_path)
    processes = [CLEAN.Process(target=search, args=(trajectory[-2:], storage)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    done = finished(storage)
    assert len(done) == N_TRIALS
    assert len({round(params["lambda"], 6) for params, _ in done}) == N_TRIALS


PROGRAM = """
import json, sys
from hf_warmscale.merging import search_merge
from tests.merging.trained import documents
texts = documents()
result = search_merge(
    sys.argv[2:], select=texts[::2], confirm=texts[1::2], n_trials=4, tolerance=0.0, output=sys.argv[1] + "/out"
)
from accelerate import PartialState
state = PartialState()
assert state.num_processes == 2

from hf_warmscale.merging.search.ranks import Ranks

class Local(Exception):
    def __init__(self, one, two):  # cannot be made again from its arguments
        super().__init__(one)

def caught(error):
    def fail():
        raise error
    try:
        Ranks().from_main(fail)
    except BaseException as raised:
        return type(raised).__name__

errors = [caught(error) for error in (KeyError("lost"), KeyboardInterrupt(), Local("one", "two"))]
with open(f"{sys.argv[1]}/{state.process_index}.json", "w") as file:
    json.dump([result.weights, result.interval.estimate, result.study is not None, errors], file)
"""


@pytest.mark.distributed
def test_the_processes_of_a_launch_share_each_trial(trajectory: list[Path], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *map(str, trajectory[-2:])]
    environments = [
        os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        for rank in range(2)
    ]
    workers = [subprocess.Popen(command, env=environment) for environment in environments]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (True, False)  # one process keeps the study
    # An error of the main process, of any class, ends the others too: none waits for it.
    assert first[3] == ["KeyError", "KeyboardInterrupt", "Local"]
    assert second[3] == ["KeyError", "KeyboardInterrupt", "RuntimeError"]
    texts = documents()
    alone = search_merge(
        trajectory[-2:], select=texts[::2], confirm=texts[1::2], n_trials=4, tolerance=0.0, output=tmp_path / "alone"
    )
    assert alone.interval.estimate == pytest.approx(first[1], abs=1e-4)
    rows = [
        [json.loads(line)["values"][0] for line in (tmp_path / name / "merge_study.jsonl").read_text().splitlines()]
        for name in ("out", "alone")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)
