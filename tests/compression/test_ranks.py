"""Two real processes prune the same weights; under ZeRO the float32 masters, and what is saved of them."""

import json
from pathlib import Path

import pytest

from tests.compression.ranks_worker import SPARSITY, main
from tests.processes import launch
from tests.training.tiny import tiny_model

ENGINES = {"ddp": "ddp", "zero2": "zero-2", "zero3": "zero-3"}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("modes", ["ddp", "zero2,zero3"])
def test_all_ranks_prune_alike_and_a_killed_run_continues(modes: str, tmp_path: Path) -> None:
    if modes.startswith("zero"):
        pytest.importorskip("deepspeed")
    outs = [tmp_path / f"{rank}.out" for rank in range(2)]
    assert launch(main, modes, tmp_path, outs=outs) == [0, 0], outs[0].with_suffix(".err").read_text()[-3000:]
    for mode in modes.split(","):
        ranks = [json.loads((tmp_path / f"{mode}-{rank}.json").read_text()) for rank in range(2)]
        first = ranks[0]["whole"]
        assert first["engine"] == ENGINES[mode]
        assert first["pruned"] == first["zeros"] == round(SPARSITY * first["total"])
        assert {seen[run]["digest"] for seen in ranks for run in ("whole", "half")} == {first["digest"]}
        assert first["stored"] and ranks[0]["half"]["stored"]
        assert first["names"] == sorted(tiny_model().state_dict())
