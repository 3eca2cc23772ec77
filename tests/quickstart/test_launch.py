"""The continuation of the quickstart under `accelerate launch`: the same losses on every engine, and resumable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_warmscale.training.recipe.run import train

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "training" / "engine_worker.py"
ENGINES = {"ddp": "cpu.yaml", "zero-1": "zero1.yaml", "zero-2": "zero2.yaml", "zero-3": "zero3.yaml"}

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.xdist_group("quickstart"),
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
def launches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def seen(finished: Path, launches: Path) -> dict[str, list[dict[str, dict[str, object]]]]:
    return {
        engine: launch(config, finished / "continue.yaml", launches / engine) for engine, config in ENGINES.items()
    }


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


def test_one_process_goes_on_where_two_stopped(
    seen: dict[str, list[dict[str, dict[str, object]]]], finished: Path, launches: Path, tmp_path: Path
) -> None:
    """The order of the data is that of the samples, whoever draws them: 2 x 16 rows a step are 1 x 32."""
    middle = min((launches / "ddp" / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(middle, tmp_path / middle.name)
    alone = train(finished / "continue.yaml", ["--output_dir", str(tmp_path), "--per_device_train_batch_size", "32"])
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert losses == pytest.approx(seen["ddp"][0]["whole"]["losses"], abs=1e-4)
