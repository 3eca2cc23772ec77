"""A stage that is killed and resumed, again and again, is the uninterrupted one: real processes, SIGKILL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "reproduce" / "crashes" / "run.py"


@pytest.mark.slow
def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    """Two of them aimed at a save; the seed is printed. The recipe does twenty, on one process and on two."""
    options = ["--kills", "3", "--kills-in-saves", "2", "--steps", "16", "--output", str(tmp_path / "results")]
    command = [sys.executable, str(RECIPE), "--work", str(tmp_path / "work"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "results" / "processes-1.json").read_text())
    assert result["killed"] == 3
    assert result["kills_inside_a_save"] >= 1
    assert (result["loss"], result["weights"], result["moments"]) == (0.0, 0.0, 0.0)
