"""Run the ladder of `ladder.yaml`; what has run is stored and not repeated.

    python recipes/reproduce/scaling/ladder.py --corpora CORPORA --work WORK
    python recipes/reproduce/scaling/ladder_report.py

CORPORA holds `documentation.{train,validation}.jsonl.gz`. Every trunk is one `ContinualTrainer` stage at a constant
rate, and every budget one branch that `anneal_stage` cools; an interrupted run goes on inside the run. Start the
command in two shells for two jobs of one thread each. `--smoke` runs `ladder_smoke.yaml`, and predicts from its runs.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from datasets import Dataset
from ladder_runs import Trunk, base_of, list_trunks, model_config, needed_by, plan_runs, steps_of, trunk_of
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_warmscale import (
    ContinualTrainer,
    ContinualTrainingArguments,
    MupForCausalLM,
    ReplayMixture,
    Stage,
    anneal_stage,
    get_schedule,
    grow_from_pretrained,
    predict_loss,
)
from hf_warmscale.checkpoints import RunFolder, load_model, run_checkpoints
from hf_warmscale.scaling import read_run
from hf_warmscale.studies import PlannedRun, Study, open_study, run_all, tokens_hash
from hf_warmscale.training.data.packing import load_packed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "corpora"))
from corpora import prepare_rows  # noqa: E402

SAVE_EVERY = 2000
"""Steps between the checkpoints from which an interrupted run goes on."""
ROWS_AT_ONCE = 10_000


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ladder")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "ladder_smoke.yaml" if arguments.smoke else "ladder.yaml"
    config = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    data = prepare(config["data"], arguments.corpora, arguments.work / "data")
    output = arguments.work / "results" if arguments.smoke else arguments.output
    study = open_study(output, config, tokens=hash_of(data.train), code=HERE)
    run_all(study, plan_runs(config), Ladder(study, data, arguments.work / "runs").run)
    if arguments.smoke:
        show_prediction(arguments.work / "runs")


@dataclass(frozen=True)
class Data:
    """Packed rows."""

    train: Dataset
    validation: Dataset


@dataclass(frozen=True)
class Ladder:
    """Where the runs live and what they share."""

    study: Study
    data: Data
    runs: Path

    def run(self, planned: PlannedRun) -> dict[str, Any]:
        """Train a trunk, or what of it is left, cool it at one budget, and return what to store."""
        trunk, ratio = trunk_of(planned), planned.content["ratio"]
        steps, rate = steps_of(self.study.config, trunk), self.rate_of(trunk)
        mixture = ReplayMixture({"text": self.data.train}, {"text": 1.0}, trunk.seed)
        base = None if trunk.base is None else read_run(self.runs / base_of(trunk, self.study.config))
        if base is not None:  # rows that the base has not seen
            mixture = mixture.after(base.tokens // self.study.config["data"]["sequence_length"])
        schedule = get_schedule("constant", learning_rate=rate, warmup=steps.warmup)
        stage = Stage(trunk.name, schedule, mixture, max_steps=steps.branches[-1])
        self.train(self.runs / trunk.name, stage, trunk, save_at=steps.branches)
        place = trunk.tokens_per_parameter.index(ratio)
        checkpoint, left = steps.branches[place], steps.ends[place] - steps.branches[place]
        parent = self.runs / trunk.name / f"checkpoint-{checkpoint}"
        cooled = anneal_stage(parent, mixture, max_steps=left, min_lr=0.0, name=planned.name)
        self.train(self.runs / planned.name, cooled, trunk, parent=parent)
        ended = read_run(self.runs / planned.name)
        return {
            "N": ended.sizes[0],
            "N_without_embeddings": ended.sizes[1],
            "D": ended.tokens,
            "D0": 0 if base is None else base.tokens,
            "N0": 0 if base is None else base.sizes[0],
            "N0_without_embeddings": 0 if base is None else base.sizes[1],
            "loss": ended.loss,
            "learning_rate": rate,
            "run": trunk.name,
            "part": "cooled",
        }

    def train(
        self, folder: Path, stage: Stage, trunk: Trunk, *, save_at: tuple[int, ...] = (), parent: Path | None = None
    ) -> None:
        """Train one stage, or what is left of it."""
        last = run_checkpoints(folder)[-1:] if folder.is_dir() else []
        if last and RunFolder(folder).is_finished:
            return
        set_seed(trunk.seed)
        model = self.first_model(trunk) if parent is None else load_model(parent, dtype=torch.float32)
        training = self.study.config["training"]
        arguments = ContinualTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=training["rows_per_step"],
            per_device_eval_batch_size=32,
            weight_decay=training["weight_decay"],
            adam_beta2=training["adam_beta2"],
            seed=trunk.seed,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=SAVE_EVERY,
            save_steps=SAVE_EVERY,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = ContinualTrainer(
            model, arguments, stage=stage, eval_dataset=self.data.validation, callbacks=[SaveAt(save_at)]
        )
        trainer.train(resume_from_checkpoint=True if last else None)

    def first_model(self, trunk: Trunk) -> PreTrainedModel:
        """Return the model that a trunk begins with: fresh, or grown from a cooled branch of the base."""
        config = model_config(self.study.config, trunk.hidden_size)
        if trunk.base is None:
            return MupForCausalLM(config)
        base = run_checkpoints(self.runs / base_of(trunk, self.study.config))[-1]
        return grow_from_pretrained(
            load_model(base, dtype=torch.float32),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            width=self.study.config["grown"]["operator"],
            seed=trunk.seed,
        )

    def rate_of(self, trunk: Trunk) -> float:
        """Return the rate of a trunk: its own, or the best of the study of rates, moved by its offset."""
        if trunk.log2_rate is not None:
            return float(2.0**trunk.log2_rate)
        trunks = list_trunks(self.study.config)
        rates = [each for each in trunks if each.kind == "rates"]
        offset = trunk.rate_offset
        if trunk.base is not None and trunk.seed != self.study.config["grown"]["seeds"][0]:
            needed = needed_by(trunk, trunks, self.study.config)
            offset = self.best([name for name in needed if name.startswith("grown/")])["rate_offset"]
        best = self.best([each.cooled(each.tokens_per_parameter[-1]) for each in rates])
        return float(best["learning_rate"] * 2.0**offset)

    def best(self, names: list[str]) -> dict[str, Any]:
        """Return the stored run with the lowest loss."""
        return min((self.study.result(name) for name in names), key=lambda result: float(result["loss"]))


class SaveAt(TrainerCallback):
    """Save a checkpoint at the steps from which branches leave."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = frozenset(steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint."""
        if state.global_step in self.steps:
            control.should_save = True


def prepare(data: dict[str, Any], corpora: Path, folder: Path) -> Data:
    """Pack the rows with the tokenizer of the studies, or load what an earlier call made."""
    folders = prepare_rows(corpora, folder, sequence_length=data["sequence_length"], domains=[data["domain"]])
    train, validation = map(load_packed, folders)
    return Data(train, validation.select(range(min(data["validation_rows"], len(validation)))))


def hash_of(rows: Dataset) -> str:
    """Return the hash of all tokens."""
    starts = range(0, len(rows), ROWS_AT_ONCE)
    return tokens_hash(np.array(rows[start : start + ROWS_AT_ONCE]["input_ids"]) for start in starts)


def show_prediction(runs: Path) -> None:
    """Predict a larger size than those of the smoke run from the folders of its runs from scratch."""
    folders = sorted((runs / "scratch").glob("*-tpp*"))
    found = predict_loss(folders, hidden_size=64, tokens=200_000, bootstrap=5)
    print(f"predicted from {len(folders)} folders: {found.loss:.4f} nats; flags: {found.flags}")


if __name__ == "__main__":
    main()
