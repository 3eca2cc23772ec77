"""Two ranks distil as one process does, under DDP and ZeRO-3: from a live, a cached and a partitioned teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import launch
from tests.training.distillation.launched_worker import CASES, STEPS, Case, main, run
from tests.training.distillation.test_distillation_trainer import student, teacher

SLACK = {"float32": 1e-5, "bfloat16": 2e-3}
"""Of losses and weights. Two rows may be rounded to bfloat16 otherwise than four."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The models, and the losses of one process by the name of the case."""
    folder = tmp_path_factory.mktemp("alone")
    student().save_pretrained(folder / "student")
    teacher().save_pretrained(folder / "teacher")
    return folder, {case.name: run(folder, "single", case) for case in CASES["single"]}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["ddp", "zero-3"])
def test_two_ranks_distil_as_one(engine: str, alone: tuple[Path, dict[str, Any]]) -> None:
    if engine == "zero-3":
        pytest.importorskip("deepspeed")
    folder, expected = alone
    outs = [folder / f"{engine}-{rank}.out" for rank in range(2)]
    assert launch(main, folder, engine, outs=outs) == [0, 0], outs[0].with_suffix(".err").read_text()[-3000:]
    for case in CASES[engine]:
        ranks = [json.loads((folder / f"{engine} {case.name} {rank}.json").read_text()) for rank in range(2)]
        for seen in ranks:
            assert (seen["engine"], seen["partitioned"], seen["frozen"]) == (engine, case.partitioned, True)
            assert seen["dtype"] == f"torch.{case.dtype}"
            same_losses(seen["losses"], expected[case.alone]["losses"], case)
        found = load_file(folder / f"{engine} {case.name}.safetensors")
        torch.testing.assert_close(
            found, load_file(folder / f"single {case.alone}.safetensors"), rtol=0, atol=SLACK[case.dtype]
        )


def test_a_bf16_teacher_is_frozen_and_its_cache_says_the_same(alone: tuple[Path, dict[str, Any]]) -> None:
    seen = alone[1]
    assert all(each["frozen"] for each in seen.values())
    case = Case("bfloat16", cached=True)
    same_losses(seen[case.name]["losses"], seen[case.alone]["losses"], case)
    assert seen[case.alone]["losses"][0]["loss"] != seen[Case().name]["losses"][0]["loss"]


def same_losses(found: list[dict[str, float]], expected: list[dict[str, float]], case: Case) -> None:
    assert len(found) == len(expected) == STEPS
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, rel=SLACK[case.dtype], abs=SLACK[case.dtype])
    assert all(entry["distillation/new"] > 0.1 and entry["distillation/old"] >= 0 for entry in found)
