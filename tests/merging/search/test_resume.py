"""A search that is killed, helped, or shared by the processes of one launch: the trials stay the same."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hf_warmscale.merging import search_merge
from hf_warmscale.merging.search.journal import open_storage
from hf_warmscale.merging.search.ranks import Ranks
from tests.merging.trained import documents
from tests.processes import CLEAN, ON_CPU, launch

N_TRIALS = 11
KILLS = 10  # a child that is killed within 13 entries finishes one trial at most
DOCUMENTS = 40  # of each split: what is compared is the order of the trials, not how good they are


def search(checkpoints: list[Path], storage: Path | str) -> None:
    texts = documents()[: 2 * DOCUMENTS]
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


class LocalError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def caught(error: BaseException) -> str:
    """What a rank gets when the main one meets this error."""

    def fail() -> None:
        raise error

    try:
        Ranks().from_main(fail)
    except BaseException as raised:
        return type(raised).__name__
    return "nothing"


def search_together(folder: Path, checkpoints: list[Path]) -> None:
    """What one rank does."""
    texts = documents()[: 2 * DOCUMENTS]
    result = search_merge(
        checkpoints, select=texts[::2], confirm=texts[1::2], n_trials=4, tolerance=0.0, output=folder / "out"
    )
    state = PartialState()
    assert state.num_processes == 2
    errors = [caught(error) for error in (KeyError("lost"), KeyboardInterrupt(), LocalError("one", "two"))]
    seen = [result.weights, result.interval.estimate, result.study is not None, errors]
    (folder / f"{state.process_index}.json").write_text(json.dumps(seen))


@pytest.mark.distributed
def test_the_processes_of_a_launch_share_each_trial(trajectory: list[Path], tmp_path: Path) -> None:
    assert launch(search_together, tmp_path, trajectory[-2:], environment=ON_CPU) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (True, False)  # one process keeps the study
    # An error of the main process, of any class, ends the others too: none waits for it.
    assert first[3] == ["KeyError", "KeyboardInterrupt", "LocalError"]
    assert second[3] == ["KeyError", "KeyboardInterrupt", "RuntimeError"]
    texts = documents()[: 2 * DOCUMENTS]
    alone = search_merge(
        trajectory[-2:], select=texts[::2], confirm=texts[1::2], n_trials=4, tolerance=0.0, output=tmp_path / "alone"
    )
    assert alone.interval.estimate == pytest.approx(first[1], abs=1e-4)
    rows = [
        [json.loads(line)["values"][0] for line in (tmp_path / name / "merge_study.jsonl").read_text().splitlines()]
        for name in ("out", "alone")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)
