"""Two real processes prune the same weights; under ZeRO the float32 masters, and what is saved of them."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from tests.compression.ranks_worker import SPARSITY
from tests.test_package import ROOT
from tests.training.tiny import tiny_model

ENGINES = {"ddp": "ddp", "zero2": "zero-2", "zero3": "zero-3"}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("modes", ["ddp", "zero2,zero3"])
def test_all_ranks_prune_alike_and_a_killed_run_continues(modes: str, tmp_path: Path) -> None:
    if modes.startswith("zero") and which("g++") is None:
        pytest.skip("DeepSpeed builds an op with g++, which is not there")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.compression.ranks_worker", modes, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for mode in modes.split(","):
        ranks = [json.loads((tmp_path / f"{mode}-{rank}.json").read_text()) for rank in range(2)]
        first = ranks[0]["whole"]
        assert first["engine"] == ENGINES[mode]
        assert first["pruned"] == first["zeros"] == round(SPARSITY * first["total"])
        assert {seen[run]["digest"] for seen in ranks for run in ("whole", "half")} == {first["digest"]}
        assert first["stored"] and ranks[0]["half"]["stored"]
        assert first["names"] == sorted(tiny_model().state_dict())
