"""The continuation of the quickstart under `accelerate launch`: the same losses on every engine, and resumable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command, launch_command_parser

from hf_warmscale.training.recipe.run import train
from tests import processes
from tests.training.engine_worker import SETTINGS, main

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "training" / "engine_worker.py"
ENGINES = {"ddp": "cpu.yaml", "zero-1": "zero1.yaml", "zero-2": "zero2.yaml", "zero-3": "zero3.yaml"}

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.xdist_group("quickstart"),
]


REALLY_LAUNCHED = "zero-3"
"""The engine with most to go wrong; the ranks of the others are forked with the environment that the launcher sets."""


def launch(engine: str, recipe: Path, folder: Path) -> list[dict[str, dict[str, object]]]:
    """Run the worker on two processes; return what each rank saw."""
    folder.mkdir()
    if engine == REALLY_LAUNCHED:
        command = [sys.executable, "-m", "accelerate.commands.launch", *options(engine)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [*command, str(WORKER), str(recipe), str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr[-3000:]
    else:
        environment = environment_of_a_rank(engine, folder / "environment")
        environment |= processes.ON_CPU if engine == "ddp" else {}
        outs = [folder / f"{rank}.out" for rank in range(2)]
        codes = processes.launch(main, str(recipe), str(folder), environment=environment, outs=outs)
        assert codes == [0, 0], (folder / "0.err").read_text()[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def options(engine: str) -> list[str]:
    """Return the options of `accelerate launch`."""
    config = ROOT / "recipes" / "accelerate_configs" / ENGINES[engine]
    return [
        *("--config_file", str(config), "--num_processes", "2", "--mixed_precision", "no"),
        *("--main_process_port", "0"),
    ]


def environment_of_a_rank(engine: str, file: Path) -> dict[str, str]:
    """Launch a program that writes its environment down."""
    write = ["--no_python", "sh", "-c", f"[ $RANK != 0 ] || env -0 > {file}"]
    started = processes.start(launch_with_accelerate, [*options(engine), *write], out=file.with_name("launcher"))
    started.join(300)
    assert started.exitcode == 0, file.with_name("launcher.err").read_text()[-3000:]
    return dict(line.split("=", 1) for line in file.read_text().split("\0") if "=" in line)


def launch_with_accelerate(arguments: list[str]) -> None:
    """Do what `accelerate launch` does."""
    launch_command(launch_command_parser().parse_args(arguments))


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def seen(finished: Path, launches: Path) -> dict[str, list[dict[str, dict[str, object]]]]:
    return {engine: launch(engine, finished / "continue.yaml", launches / engine) for engine in ENGINES}


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
    settings = [*SETTINGS, "--output_dir", str(tmp_path), "--per_device_train_batch_size", "32"]
    alone = train(finished / "continue.yaml", settings)
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert losses == pytest.approx(seen["ddp"][0]["whole"]["losses"], abs=1e-4)
