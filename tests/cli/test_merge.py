"""`warmscale merge`: who speaks when several processes share a search."""

import json
import shutil
from pathlib import Path

import pytest

from hf_warmscale.cli import main
from tests.processes import ON_CPU, launch


@pytest.mark.distributed
def test_of_the_processes_of_a_launch_one_speaks(workspace: Path, tmp_path: Path) -> None:
    """And writes the card; the other helps with the documents, and is silent."""
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(workspace / "model", tmp_path / name)
    typed = ["merge", "checkpoint-1", "checkpoint-2", "--output", "out", "--trials", "2", "--eval-data"]
    typed.append(str(workspace / "held-out.jsonl"))
    outs = [tmp_path / f"{rank}.out" for rank in range(2)]
    assert launch(main, typed, cwd=tmp_path, outs=outs, environment=ON_CPU) == [0, 0]
    printed = [out.read_text() for out in outs]
    assert "No merge: " in printed[0] and "Weights of the model" in printed[0]
    assert printed[1] == ""
    verdict = json.loads((tmp_path / "out" / "merge_result.json").read_text())["verdict"]
    assert verdict in (tmp_path / "out" / "README.md").read_text()
