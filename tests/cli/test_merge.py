"""`warmscale merge`: who speaks when several processes share a search."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.shell import COMMAND


@pytest.mark.distributed
def test_of_the_processes_of_a_launch_one_speaks(workspace: Path, tmp_path: Path) -> None:
    """And writes the card; the other helps with the documents, and is silent."""
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(workspace / "model", tmp_path / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    typed = ["merge", "checkpoint-1", "checkpoint-2", "--output", "out", "--trials", "2", "--eval-data"]
    processes = [
        subprocess.Popen(
            [*COMMAND, *typed, str(workspace / "held-out.jsonl")],
            cwd=tmp_path,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "No merge: " in printed[0] and "Weights of the model" in printed[0]
    assert printed[1] == ""
    verdict = json.loads((tmp_path / "out" / "merge_result.json").read_text())["verdict"]
    assert verdict in (tmp_path / "out" / "README.md").read_text()
