"""Whoever looks at an output sees nothing or all of it, whatever happens to the writer."""

import json
import os
import shutil
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hf_warmscale.staging import publish, refuse_existing, staged_directory, staged_file, write_json, write_text
from tests.checkpoints.processes import fork, outcome

NOBODY = 65534


def write(output: Path, content: str = "all of it") -> None:
    with staged_directory(output) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text(content)
        assert not output.exists() or not any(output.iterdir())


@pytest.mark.parametrize("prepare", [lambda output: None, lambda output: output.mkdir()], ids=["new", "empty"])
def test_complete(tmp_path: Path, prepare: object) -> None:
    output = tmp_path / "parent" / "of" / "output"
    output.parent.mkdir(parents=True)
    assert callable(prepare)
    prepare(output)
    write(output)
    assert (output / "part" / "file").read_text() == "all of it"
    assert list(output.parent.iterdir()) == [output]
    assert oct(output.stat().st_mode) == oct(output.parent.stat().st_mode)


def test_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "parent" / "of" / "output")
    assert (tmp_path / "parent" / "of" / "output" / "part" / "file").is_file()


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "part" / "file").is_file()


@pytest.mark.parametrize("error", [RuntimeError("no"), ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, staged_directory(tmp_path / "output") as folder:
        (folder / "file").write_text("half of it")
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_refused_and_kept(tmp_path: Path) -> None:
    output = tmp_path / "output"
    write(output, "old")
    with pytest.raises(ValueError, match="is not empty; name a new or an empty folder"):
        write(output, "new")
    assert (output / "part" / "file").read_text() == "old"
    with pytest.raises(ValueError, match="is a file"):
        refuse_existing(output / "part" / "file")
    refuse_existing(tmp_path / "nothing")


def test_what_is_no_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ValueError, match="pipe is a file"):
        write(tmp_path / "pipe")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write(tmp_path / "circle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "pipe"]


def test_a_dangling_leftover_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".output.partial").mkdir()
    (tmp_path / ".output.partial" / "old").write_text("half of it")
    (tmp_path / ".output.lock").write_text("")
    write(tmp_path / "output")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "output", "part"]


class TestWhereNothingCanBeWritten:
    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OSError, match=r"The folder .*/file cannot be made \(.*\); name another output") as refusal:
            write(tmp_path / "file" / "output")
        assert "\n" not in str(refusal.value)
        assert (tmp_path / "file").read_text() == "kept"

    def test_no_permission(self, tmp_path: Path) -> None:
        """As another user if this one may do anything."""
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o555)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            if folder.stat().st_uid == os.getuid() and folder != Path(folder.anchor):
                folder.chmod(folder.stat().st_mode | 0o055)

        def attempt(pipe: Connection) -> None:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            pipe.send(outcome(lambda: write(locked / "output")))
            pipe.send(outcome(lambda: write(locked / "parent" / "output")))

        process, pipe = fork(attempt)
        answers = [pipe.recv(), pipe.recv()]
        process.join()
        assert answers[0] == f"PermissionError The folder {locked} cannot be written to; name another output."
        assert answers[1].startswith(f"PermissionError The folder {locked}/parent cannot be made (Permission denied)")
        assert list(locked.iterdir()) == []


class TestTwoWriters:
    def test_the_second_one_is_refused(self, tmp_path: Path) -> None:
        output = tmp_path / "output"

        def slow(pipe: Connection) -> None:
            with staged_directory(output) as folder:
                (folder / "file").write_text("first")
                pipe.send("inside")
                pipe.recv()

        process, pipe = fork(slow)
        assert pipe.recv() == "inside"
        with pytest.raises(OSError, match=r"Another process is writing .*output; wait for it"):
            write(output, "second")
        pipe.send("go on")
        process.join()
        assert (output / "file").read_text() == "first"
        assert [path.name for path in tmp_path.iterdir()] == ["output"]

    def test_a_killed_one_does_not_block(self, tmp_path: Path) -> None:
        output = tmp_path / "output"

        def stuck(pipe: Connection) -> None:
            with staged_directory(output) as folder:
                (folder / "file").write_text("half of it")
                pipe.send("inside")
                pipe.recv()

        process, pipe = fork(stuck)
        pipe.recv()
        process.kill()
        process.join()
        assert not output.exists() and (tmp_path / ".output.partial" / "file").exists()
        write(output)
        assert [path.name for path in tmp_path.iterdir()] == ["output"]

    def test_an_interrupted_one_cleans_up(self, tmp_path: Path) -> None:
        def stuck(pipe: Connection) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with staged_directory(tmp_path / "output") as folder:
                (folder / "file").write_text("half of it")
                pipe.send("inside")
                pipe.recv()

        process, pipe = fork(stuck)
        pipe.recv()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join()
        assert process.exitcode == 1
        assert list(tmp_path.iterdir()) == []

    def test_many_race_and_one_wins(self, tmp_path: Path) -> None:
        answers: list[str] = []
        start = threading.Barrier(8)

        def race(number: int) -> None:
            start.wait()
            answers.append(outcome(lambda: write(tmp_path / "output", str(number))))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count("done") == 1
        assert all("not empty" in answer or "Another process" in answer for answer in answers if answer != "done")
        assert [path.name for path in tmp_path.iterdir()] == ["output"]


class TestText:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_json(tmp_path / "new" / "file.json", {"a": [1, None, "é"]})
        assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"a": [1, None, "é"]}
        assert (tmp_path / "new" / "file.json").read_text().endswith("}\n")

    def test_nan_is_refused_and_the_old_file_kept(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file.json", {"loss": 1.0})
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "file.json", {"loss": float("nan")})
        assert json.loads((tmp_path / "file.json").read_text()) == {"loss": 1.0}
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]

    def test_many_writers_leave_one_whole_file(self, tmp_path: Path) -> None:
        texts = [f"{number}\n" * 20_000 for number in range(8)]
        threads = [threading.Thread(target=write_text, args=(tmp_path / "file", text)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (tmp_path / "file").read_text() in texts
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").mkdir()
        with pytest.raises(OSError, match="Is a directory"):
            write_text(tmp_path / "file", "text")
        shutil.rmtree(tmp_path / "file")
        assert list(tmp_path.iterdir()) == []


def test_a_folder_gives_way_only_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("new", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError):
        publish(tmp_path / "new", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "there"
    publish(tmp_path / "new", tmp_path / "there", replace=True)
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_file_is_replaced_as_a_whole_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with staged_file(path) as staging:
        staging.write_text("old")
    with pytest.raises(RuntimeError), staged_file(path) as staging:
        staging.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
