"""A finished quickstart, which was interrupted twice."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_warmscale.quickstart.settings import MIN_TOKENS

COMMAND = [sys.executable, "-m", "hf_warmscale", "quickstart", "--tokens", str(MIN_TOKENS), "--output"]


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
    resumed = subprocess.run([*COMMAND, str(output)], capture_output=True, text=True, timeout=900)
    assert resumed.returncode == 0, resumed.stderr
    assert (output / "runs" / "base").stat().st_mtime_ns == base, "the finished stage was run again"
    return output


def interrupt(output: Path, *, when: str) -> None:
    """Start the quickstart and press Ctrl-C as soon as a path that matches `when` exists."""
    process = subprocess.Popen([*COMMAND, str(output)], stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 600
    while not any(output.glob(when)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert not (output / "report.json").exists()


def listen() -> None:
    """Hear Ctrl-C, which a suite in the background of a shell would pass on as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
