"""Train one stage of 20 steps on every engine, and resume each from step 10: the losses side by side.

    python recipes/reproduce/engines/run.py --work WORK

One process, one process with gradient accumulation, and two processes under DDP and ZeRO-1, 2 and 3, with the
accelerate configurations of this repository. The total batch is the same, so the losses must be. On CPU; FSDP2 needs
accelerators.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "accelerate_configs"
ENGINES = {
    "single": None,
    "accumulation": None,
    "ddp": "cpu.yaml",
    **{f"zero-{stage}": f"zero{stage}.yaml" for stage in (1, 2, 3)},
}
STEPS, BATCH = 20, 8
TOLERANCE = 5e-5


def main() -> None:
    """Parse the arguments and run; exit with 1 if an engine differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train(arguments.worker, arguments.work)
        return
    columns: dict[str, list[float]] = {}
    for engine in ENGINES:
        whole, resumed = arguments.work / engine / "whole", arguments.work / engine / "resumed"
        shutil.rmtree(arguments.work / engine, ignore_errors=True)
        columns[engine] = launch(engine, whole)
        shutil.copytree(whole / f"checkpoint-{STEPS // 2}", resumed / f"checkpoint-{STEPS // 2}")
        columns[f"{engine}, resumed"] = launch(engine, resumed)
        print(f"{engine}: done", flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    report(columns, arguments.output)


def report(columns: dict[str, list[float]], output: Path) -> None:
    """Write and print the losses and the largest difference of each column from the first."""
    from hf_warmscale.report import markdown_table

    expected = columns["single"]
    rows = [
        {"step": step + 1, **{name: f"{losses[step]:.6f}" for name, losses in columns.items()}}
        for step in range(STEPS)
    ]
    gaps = {name: max(abs(a - b) for a, b in zip(losses, expected, strict=True)) for name, losses in columns.items()}
    text = markdown_table(
        [*rows, {"step": "largest difference", **{name: f"{gap:.1e}" for name, gap in gaps.items()}}]
    )
    (output / "engines.md").write_text(text)
    (output / "engines.json").write_text(json.dumps({"losses": columns, "largest_differences": gaps}, indent=2) + "\n")
    print(text)
    if max(gaps.values()) > TOLERANCE:
        raise SystemExit(1)


def launch(engine: str, folder: Path) -> list[float]:
    """Run a stage, from where its folder is, and return its losses."""
    command, environment = [sys.executable], dict(os.environ)
    if ENGINES[engine] is not None:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / str(ENGINES[engine]))]
        command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    if engine == "ddp":
        environment["ACCELERATE_USE_CPU"] = "true"
    command += [__file__, "--worker", engine, "--work", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-3000:]}")
    history = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def train(engine: str, folder: Path) -> None:
    """Train the stage on this rank."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage, get_schedule
    from hf_warmscale.training.launch import engine_name, prepare_processes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    rows = {name: torch.randint(256, (400, 64)).tolist() for name in ("new", "old")}
    sources = {name: [{"input_ids": row, "labels": row} for row in content] for name, content in rows.items()}
    mixture = ReplayMixture(sources, {0: [0.9, 0.1], BATCH * STEPS // 2: [0.5, 0.5]}, seed=1)
    stage = Stage("engines", get_schedule("rewarm_cosine", warmup=4), mixture, max_steps=STEPS)
    accumulation = 2 if engine == "accumulation" else 1
    per_device = BATCH // (accumulation * int(os.environ.get("WORLD_SIZE", "1")))
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": per_device, "learning_rate": 3e-3,
        "gradient_accumulation_steps": accumulation, "logging_steps": 1, "save_steps": STEPS // 2,
        "disable_tqdm": True, "report_to": "none", "log_level": "error",
    }  # fmt: skip
    if not engine.startswith("zero"):
        settings["use_cpu"] = True
    model = LlamaForCausalLM(config)
    trainer = ContinualTrainer(model, ContinualTrainingArguments(**prepare_processes(settings)), stage=stage)
    trainer.train(resume_from_checkpoint=folder.is_dir() and any(folder.glob("checkpoint-*")))
    found, asked = engine_name(trainer.model_wrapped), "single" if engine == "accumulation" else engine
    if found != asked:
        raise SystemExit(f"{asked} was asked for and {found} ran.")


if __name__ == "__main__":
    main()
