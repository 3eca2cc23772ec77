"""Kill a stage with SIGKILL again and again, resume it each time, and compare it with the uninterrupted run.

    python recipes/reproduce/crashes/run.py --work WORK                  # one process, bit for bit
    python recipes/reproduce/crashes/run.py --work WORK --processes 2    # DDP, to 1e-6

The moments are drawn from the printed seed: a step and how far into it, or a save and how far into it. Every process
of a run is killed at once. The result goes to `results/processes-<n>.json`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hf_warmscale.studies import write_result

HERE = Path(__file__).parent
SAVE_EVERY = 4
STAGING = "_partial"
BEAT = "step begins: "
TOLERANCE = {1: 0.0, 2: 1e-6}


@dataclass(frozen=True)
class Moment:
    """When to kill: in the step after `step`, or in the first save from there on, after a share of its duration."""

    step: int
    in_save: bool
    share: float


def main() -> None:
    """Parse the arguments and run; exit with 1 if the killed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--processes", type=int, choices=sorted(TOLERANCE), default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-in-saves", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=20260115)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train(arguments.work, arguments.steps)
    elif not compare(arguments):
        raise SystemExit(1)


def compare(arguments: argparse.Namespace) -> bool:
    """Run without and with kills; tell whether both are the same."""
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    whole, killed = arguments.work / "whole", arguments.work / "killed"
    plan = draw(arguments)
    print(f"seed {arguments.seed}: {len(plan)} kills, {sum(moment.in_save for moment in plan)} aimed at a save")
    durations = watch(start(arguments, whole), whole, None)
    kills = []
    for moment in plan:
        found = watch(start(arguments, killed), killed, moment, durations)
        kills.append({**asdict(moment), **found})
        print(kills[-1], flush=True)
    watch(start(arguments, killed), killed, None)
    result = {
        "seed": arguments.seed,
        "processes": arguments.processes,
        "kills": kills,
        "kills_inside_a_save": sum(kill["inside_a_save"] for kill in kills),
        "killed": sum(kill["killed"] for kill in kills),
        **differences(whole / f"checkpoint-{arguments.steps}", killed / f"checkpoint-{arguments.steps}"),
    }
    result["passed"] = max(result["loss"], result["weights"]) <= TOLERANCE[arguments.processes]
    write_result(arguments.output / f"processes-{arguments.processes}.json", result, code=HERE)
    print(
        f"{result['killed']} kills, {result['kills_inside_a_save']} inside a save; largest difference of a logged "
        f"value {result['loss']:.3g}, of a weight {result['weights']:.3g}: {'same' if result['passed'] else 'DIFFERS'}"
    )
    return bool(result["passed"])


def draw(arguments: argparse.Namespace) -> list[Moment]:
    """Draw the moments, in the order of their steps; the run is behind each of them when it is resumed."""
    generator = random.Random(arguments.seed)
    steps = sorted(generator.sample(range(1, arguments.steps - SAVE_EVERY), arguments.kills))
    in_saves = set(generator.sample(range(arguments.kills), arguments.kills_in_saves))
    return [Moment(step, number in in_saves, generator.random()) for number, step in enumerate(steps)]


def start(arguments: argparse.Namespace, folder: Path) -> "list[subprocess.Popen[str]]":
    """Start the run, or what goes on with it: one process a rank, all in one process group."""
    command = [sys.executable, __file__, "--worker", "--work", str(folder), "--steps", str(arguments.steps)]
    ranks: list[subprocess.Popen[str]] = []
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(arguments.processes)}
    environment["LOCAL_WORLD_SIZE"] = environment["WORLD_SIZE"]
    with (arguments.work / f"{folder.name}.log").open("a") as log:
        for rank in range(arguments.processes):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if arguments.processes > 1 else {}
            group, out = (ranks[0].pid, log) if ranks else (0, subprocess.PIPE)
            ranks.append(
                subprocess.Popen(
                    command, stdout=out, stderr=log, text=True, process_group=group, env={**os.environ, **own}
                )
            )
    return ranks


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def watch(
    ranks: "list[subprocess.Popen[str]]", folder: Path, moment: Moment | None, durations: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Follow a run to its end and return how long steps and saves take, or to a moment and kill it."""
    staging, steps = folder / STAGING, []
    assert ranks[0].stdout is not None
    for line in ranks[0].stdout:
        if not line.startswith(BEAT):
            continue
        steps.append((int(line.removeprefix(BEAT)), time.monotonic()))
        if moment is not None and durations is not None and steps[-1][0] >= moment.step:
            return kill(ranks, staging, moment, durations, steps[0][0])
    codes = [process.wait() for process in ranks]
    if any(codes):
        raise SystemExit(f"The run in {folder} ended with an error; see the log beside it.")
    times = [later - earlier for (_, earlier), (_, later) in pairwise(steps)]
    plain = [seconds for (step, _), seconds in zip(steps, times, strict=False) if step % SAVE_EVERY]
    saving = [seconds for (step, _), seconds in zip(steps, times, strict=False) if step % SAVE_EVERY == 0]
    usual = sorted(plain)[len(plain) // 2] if plain else 0.0
    saves = sorted(saving)[len(saving) // 2] - usual if saving else 0.0
    return {"step": usual, "save": max(saves, 0.0), "killed": False, "inside_a_save": False}


def kill(
    ranks: "list[subprocess.Popen[str]]", staging: Path, moment: Moment, durations: dict[str, Any], resumed_at: int
) -> dict[str, Any]:
    """Wait for the moment and kill every rank."""
    if moment.in_save:
        while not staging.exists() and ranks[0].poll() is None:
            time.sleep(0.0005)
    time.sleep(moment.share * durations["save" if moment.in_save else "step"] * 0.8)
    alive = all(process.poll() is None for process in ranks)
    os.killpg(ranks[0].pid, signal.SIGKILL)
    for process in ranks:
        process.wait()
    return {"killed": alive, "resumed_at": resumed_at, "inside_a_save": staging.exists()}


def differences(whole: Path, killed: Path) -> dict[str, float]:
    """Return the largest difference of a logged loss or rate, and of a weight."""
    import torch
    from safetensors.torch import load_file

    first, second = (logged(folder) for folder in (whole, killed))
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    weights = [load_file(folder / "model.safetensors") for folder in (whole, killed)]
    return {
        "loss": max(abs(first[key] - second[key]) for key in first),
        "weights": max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]),
        "moments": _largest(*(torch.load(folder / "optimizer.pt", weights_only=True) for folder in (whole, killed))),
    }


def _largest(first: dict[str, Any], second: dict[str, Any]) -> float:
    pairs = ((first["state"][key], second["state"][key]) for key in first["state"])
    return max(float((one["exp_avg_sq"] - other["exp_avg_sq"]).abs().max()) for one, other in pairs)


def logged(checkpoint: Path) -> dict[tuple[int, str], float]:
    """Return every loss, rate and count that was logged, by step and name."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second", "flos")
    return {
        (entry["step"], name): float(value)
        for entry in history
        for name, value in entry.items()
        if not name.endswith(timed) and not name.startswith("train_")
    }


def train(folder: Path, steps: int) -> None:
    """Train the stage, or go on with it; print every step as it begins."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage, get_schedule
    from hf_warmscale.training.launch import prepare_processes

    class Beat(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                print(f"{BEAT}{state.global_step}", flush=True)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        attention_dropout=0.1,
    )  # fmt: skip
    rows = {name: torch.randint(256, (400, 64)).tolist() for name in ("new", "old")}
    sources = {name: [{"input_ids": row, "labels": row} for row in content] for name, content in rows.items()}
    mixture = ReplayMixture(sources, {0: [0.9, 0.1], 8 * steps // 2: [0.5, 0.5]}, seed=1)
    stage = Stage("crashes", get_schedule("rewarm_cosine", warmup=10), mixture, max_steps=steps)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 8 // processes, "learning_rate": 3e-3,
        "logging_steps": 1, "save_steps": SAVE_EVERY, "eval_strategy": "steps", "eval_steps": 10, "use_cpu": True,
        "disable_tqdm": True, "report_to": "none", "save_total_limit": 2, "log_level": "error",
        "log_on_each_node": False,
    }  # fmt: skip
    args = ContinualTrainingArguments(**prepare_processes(settings))
    domains = {name: content[:16] for name, content in sources.items()}
    trainer = ContinualTrainer(LlamaForCausalLM(config), args, stage=stage, eval_dataset=domains, callbacks=[Beat()])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=folder.is_dir() and get_last_checkpoint(str(folder)) is not None)


if __name__ == "__main__":
    main()
