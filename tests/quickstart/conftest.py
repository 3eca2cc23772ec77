"""A finished quickstart, which was interrupted twice."""

import os
import signal
import time
from pathlib import Path

import pytest

from hf_warmscale.cli import main
from hf_warmscale.quickstart.settings import MIN_TOKENS
from tests.processes import start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted inside a save, started again, interrupted in its second stage and started again."""
    output = tmp_path_factory.mktemp("quickstart") / "run"
    interrupt(output, when="runs/base/_partial/checkpoint-*/*")
    complete = {"stage.json", "model.safetensors", "optimizer.pt", "trainer_state.json"}
    for checkpoint in output.glob("runs/base/checkpoint-*"):
        assert complete <= {path.name for path in checkpoint.iterdir()}, checkpoint
    interrupt(output, when="runs/grown/checkpoint-*")
    base = (output / "runs" / "base").stat().st_mtime_ns
    resumed = start(quickstart, output, out=output.with_name("resumed"))
    resumed.join(900)
    assert resumed.exitcode == 0, output.with_name("resumed.err").read_text()
    assert (output / "runs" / "base").stat().st_mtime_ns == base, "the finished stage was run again"
    return output


def interrupt(output: Path, *, when: str) -> None:
    """Start the quickstart and press Ctrl-C as soon as a path that matches `when` exists."""
    process = start(quickstart, output, out=output.with_name("interrupted"))
    deadline = time.monotonic() + 600
    while not any(output.glob(when)) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130, output.with_name("interrupted.err").read_text()
    assert not (output / "report.json").exists()


def quickstart(output: Path) -> int:
    """Hear Ctrl-C, which a suite in the background of a shell would pass on as ignored, and run the command."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return main(["quickstart", "--tokens", str(MIN_TOKENS), "--output", str(output)])
