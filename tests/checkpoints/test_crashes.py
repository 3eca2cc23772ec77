"""Full disks, file-size limits and SIGKILL, all real: the output is complete or absent, the input as it was."""

import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from hf_warmscale.checkpoints import (
    CheckpointWriter,
    TensorSpec,
    open_checkpoint,
    save_model,
    staged_directory,
    write_json,
)
from tests.checkpoints.processes import fork
from tests.checkpoints.tiny import fingerprint, tiny_folder, tiny_model

MEGABYTE = 1 << 20
SMALL = 2 * MEGABYTE
TENSOR = torch.arange(MEGABYTE // 4, dtype=torch.float32)


def stream(output: Path) -> None:
    """Write 4 MB, more than there is room for, tensor by tensor."""
    specs = {str(number): TensorSpec.of(TENSOR) for number in range(4)}
    with staged_directory(output) as folder, CheckpointWriter(folder, specs) as writer:
        for name in specs:
            writer.write(name, TENSOR)


def save_many(output: Path) -> None:
    """Save a model whose weights fit, and receipts that do not."""
    save_model(tiny_model(), output, receipts={f"{number}.json": {"text": "x" * MEGABYTE} for number in range(3)})


def save_large(output: Path) -> None:
    """Save a live model that does not fit."""
    model = tiny_model()
    model.resize_token_embeddings(SMALL // 32)
    save_model(model, output)


def torch_save(output: Path) -> None:
    """Save an optimizer state that does not fit."""
    with staged_directory(output) as folder:
        torch.save({"exp_avg": TENSOR.repeat(4)}, folder / "optimizer.pt")


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 2 MB at `folder`; where that is not allowed, limit files to 512 kB instead."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            # Lazily: the writer of a failed torch.save lives as long as its traceback.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        with limited_files(MEGABYTE // 2):
            yield


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes; Python ignores the signal, so the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [stream, save_many, save_large, torch_save])
def test_full_disk(tmp_path: Path, write: Callable[[Path], None]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with full_disk(disk):
        with pytest.raises(OSError, match="free some space or name another disk") as refusal:
            write(disk / "output")
        assert list(disk.iterdir()) == []
        assert "\n" not in str(refusal.value) and str(disk) in str(refusal.value)
    write(tmp_path / "output")  # elsewhere there is room
    assert any((tmp_path / "output").iterdir())


def test_a_mount_point_cannot_be_replaced(tmp_path: Path) -> None:
    with full_disk(tmp_path):
        if not tmp_path.is_mount():
            pytest.skip("mounting is not permitted here")
        with pytest.raises(ValueError, match="is a mount point; name a new folder inside it"):
            stream(tmp_path)


@pytest.mark.parametrize("write", [stream, save_many, save_large])
def test_file_size_limit(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with limited_files(MEGABYTE // 2):
        with pytest.raises(OSError, match=r"There is no room left to write .*output; free some space"):
            write(tmp_path / "output")
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_text(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"step": 1})
    with limited_files(1000), pytest.raises(OSError, match="There is no room left to write"):
        write_json(tmp_path / "file.json", {"text": "x" * 2000})
    assert (tmp_path / "file.json").read_text() == '{\n  "step": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Copy a checkpoint, kill the copier at a random moment: the target is absent or complete, the next copy works."""
    source = tiny_folder(tmp_path / "source", sharded=True)
    before, expected = fingerprint(source), open_checkpoint(source).content_hash()
    target = tmp_path / "outputs" / "target"

    def copy(pipe: Connection | None = None) -> None:
        checkpoint = open_checkpoint(source)
        with (
            staged_directory(target) as folder,
            CheckpointWriter(folder, checkpoint.specs, max_shard_size="4KB") as writer,
        ):
            for name, tensor in checkpoint.tensors():
                writer.write(name, tensor)
        if pipe is not None:
            pipe.send("done")

    for _ in range(2):  # the first one imports what it needs
        start = time.perf_counter()
        copy()
        duration = time.perf_counter() - start
        shutil.rmtree(target)
    moments = random.Random(0)
    absent = 0
    for _ in range(12):
        process, _pipe = fork(copy)
        time.sleep(moments.uniform(0, 1.3) * duration)
        process.kill()
        process.join()
        assert fingerprint(source) == before
        if target.exists():
            assert open_checkpoint(target).content_hash() == expected
            shutil.rmtree(target)
        else:
            absent += 1
    assert absent > 0
    copy()
    assert open_checkpoint(target).content_hash() == expected
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_whoever_looks_sees_nothing_or_all(tmp_path: Path) -> None:
    """Look at the target all the time while another process makes it, a hundred files."""
    target = tmp_path / "target"

    def make(pipe: Connection) -> None:
        with staged_directory(target) as folder:
            for number in range(100):
                (folder / str(number)).touch()

    process, _pipe = fork(make)
    seen = set()
    while process.is_alive():
        if target.exists():
            seen.add(len(list(target.iterdir())))
    process.join()
    assert seen <= {100}
    assert len(list(target.iterdir())) == 100
