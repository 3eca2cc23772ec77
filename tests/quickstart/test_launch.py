"""The continuation of the quickstart under `accelerate launch`: the same losses on every engine, and resumable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "training" / "engine_worker.py"
ENGINES = {"ddp": "cpu.yaml", "zero-1": "zero1.yaml", "zero-2": "zero2.yaml", "zero-3": "zero3.yaml"}

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(shutil.which("cc") is None, reason="DeepSpeed compiles an operator and there is no compiler"),
]


def launch(config: str, recipe: Path, folder: Path) -> list[dict[str, dict[str, object]]]:
    """Run the worker on two processes; return what each rank saw."""
    folder.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "recipes" / "accelerate_configs" / config), "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", "0", str(WORKER), str(recipe), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if config == "cpu.yaml":
        environment["ACCELERATE_USE_CPU"] = "true"
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def seen(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, dict[str, object]]]]:
    folder = tmp_path_factory.mktemp("launches")
    return {engine: launch(config, finished / "continue.yaml", folder / engine) for engine, config in ENGINES.items()}


def test_each_engine_is_the_one_that_was_asked_for(seen: dict[str, list[dict[str, dict[str, object]]]]) -> None:
    for engine, ranks in seen.items():
        for rank in ranks:
            for run in ("whole", "resumed"):
                assert (rank[run]["engine"], rank[run]["world_size"]) == (engine, 2)


def test_losses_agree_between_engines_and_after_resuming(seen: dict[str, list[dict[str, dict[str, object]]]]) -> None:
    expected = seen["ddp"][0]["whole"]["losses"]
    for engine, (rank, _) in seen.items():
        print(engine, rank["whole"]["losses"])
        assert rank["whole"]["losses"] == pytest.approx(expected, abs=1e-4), engine
        assert rank["resumed"]["losses"] == pytest.approx(rank["whole"]["losses"], abs=1e-6), engine
