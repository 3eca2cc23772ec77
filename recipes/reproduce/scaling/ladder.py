"""Run the ladder of `ladder.yaml`; what has run is stored and not repeated.

    python recipes/reproduce/scaling/ladder.py --corpora CORPORA --work WORK
    python recipes/reproduce/scaling/ladder_report.py

CORPORA holds `documentation.{train,validation}.jsonl.gz`. Every trunk is one `ContinualTrainer` stage at a constant
rate, and every budget one branch that `anneal_stage` cools; an interrupted run goes on inside the run. `--only` names
trunks by a part of their name: start the command twice with different parts for two jobs. `--smoke` runs
`ladder_smoke.yaml`, and predicts from its folders.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from datasets import Dataset
from ladder_runs import Study, Trunk, list_trunks, model_config, steps_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
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
from hf_warmscale.checkpoints import RunFolder, run_checkpoints, write_json
from hf_warmscale.scaling import read_run
from hf_warmscale.training.data.packing import load_packed, pack

HERE = Path(__file__).parent
END_OF_TEXT = "<|endoftext|>"
SAVE_EVERY = 2000
"""Steps between the checkpoints from which an interrupted run goes on."""


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ladder")
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "ladder_smoke.yaml" if arguments.smoke else "ladder.yaml"
    study = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    output = arguments.work / "results" if arguments.smoke else arguments.output
    ladder = Ladder(study, prepare(study, arguments.corpora, arguments.work / "data"), arguments.work, output)
    for trunk in list_trunks(study):
        if any(part in trunk.name for part in arguments.only):
            ladder.run(trunk)
    if arguments.smoke:
        show_prediction(arguments.work)


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
    work: Path
    output: Path

    def run(self, trunk: Trunk) -> None:
        """Train a trunk and cool it at every budget, or what of it is left."""
        steps = steps_of(self.study, trunk)
        names = [f"{trunk.name}-tpp{ratio:g}" for ratio in trunk.tokens_per_parameter]
        if all((self.output / f"{name}.json").exists() for name in names):
            return
        rate = self.rate_of(trunk)
        mixture = ReplayMixture({"text": self.data.train}, {"text": 1.0}, trunk.seed)
        if trunk.base is not None:
            mixture = mixture.after(self.base_record(trunk)["samples"])
        folder = self.work / "runs" / trunk.name
        stage = Stage(
            trunk.name,
            get_schedule("constant", learning_rate=rate, warmup=steps.warmup),
            mixture,
            max_steps=steps.branches[-1],
        )
        self.train(folder, stage, trunk, save_at=steps.branches)
        for name, branch, end in zip(names, steps.branches, steps.ends, strict=True):
            if not (self.output / f"{name}.json").exists():
                checkpoint = folder / f"checkpoint-{branch}"
                cooled = anneal_stage(checkpoint, mixture, max_steps=end - branch, min_lr=0.0, name=name)
                self.train(self.work / "runs" / name, cooled, trunk, checkpoint=checkpoint)
                self.store(name, trunk, rate)

    def train(
        self,
        folder: Path,
        stage: Stage,
        trunk: Trunk,
        *,
        save_at: tuple[int, ...] = (),
        checkpoint: Path | None = None,
    ) -> None:
        """Train one stage, or what is left of it."""
        last = run_checkpoints(folder)[-1:] if folder.is_dir() else []
        if last and RunFolder(folder).is_finished:
            return
        set_seed(trunk.seed)
        model = self.first_model(trunk) if checkpoint is None else load(checkpoint)
        training = self.study["training"]
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
        config = model_config(self.study, trunk.hidden_size)
        if trunk.base is None:
            return MupForCausalLM(config)
        return grow_from_pretrained(
            load(run_checkpoints(self.base_folder(trunk))[-1]),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            width=self.study["grown"]["operator"],
            seed=trunk.seed,
        )

    def base_folder(self, trunk: Trunk) -> Path:
        """Return the run that a grown trunk starts from."""
        hidden_size = self.study["grown"]["base_hidden_size"]
        return self.work / "runs" / f"scratch-hidden{hidden_size}-seed{trunk.seed}-tpp{trunk.base:g}"

    def base_record(self, trunk: Trunk) -> dict[str, Any]:
        """Return tokens, rows and parameters of the base of a grown trunk."""
        run = read_run(self.base_folder(trunk))
        return {"D0": run.tokens, "N0": run.sizes, "samples": run.tokens // self.study["data"]["sequence_length"]}

    def rate_of(self, trunk: Trunk) -> float:
        """Return the rate of a trunk: its own, or the best of the study of rates, moved by its offset."""
        if trunk.log2_rate is not None:
            return float(2.0**trunk.log2_rate)
        results = [json.loads(path.read_text()) for path in sorted(self.output.glob("rates-*.json"))]
        wanted = len(self.study["rates"]["log2"])
        if len(results) < wanted:
            raise SystemExit(f"{len(results)} of {wanted} rates have run; run them first (--only rates).")
        best = min(results, key=lambda result: float(result["loss"]))["learning_rate"]
        return float(best * 2.0 ** self.offset_of(trunk))

    def offset_of(self, trunk: Trunk) -> float:
        """Return the offset of a grown trunk's rate; later seeds take the best one of the first."""
        seeds = self.study["grown"]["seeds"]
        if trunk.base is None or trunk.seed == seeds[0]:
            return trunk.rate_offset
        first = (
            f"grown-hidden{trunk.hidden_size}-base{trunk.base:g}-*seed{seeds[0]}-tpp{trunk.tokens_per_parameter[-1]:g}"
        )
        results = [json.loads(path.read_text()) for path in self.output.glob(f"{first}.json")]
        return float(min(results, key=lambda result: float(result["loss"]))["rate_offset"])

    def store(self, name: str, trunk: Trunk, rate: float) -> None:
        """Write the row of a cooled run, with where it comes from."""
        run = read_run(self.work / "runs" / name)
        base = {"D0": 0, "N0": (0, 0)} if trunk.base is None else self.base_record(trunk)
        write_json(
            self.output / f"{name}.json",
            {
                **asdict(trunk),
                "N": run.sizes[0],
                "N_without_embeddings": run.sizes[1],
                "D": run.tokens,
                "D0": base["D0"],
                "N0": base["N0"][0],
                "N0_without_embeddings": base["N0"][1],
                "loss": run.loss,
                "learning_rate": rate,
                "run": trunk.name,
                "part": "cooled",
                "data_hash": run.folder.data_hash,
                "provenance": provenance(),
            },
        )
        print(f"{name}: {run.loss:.4f} nats after {run.tokens:,} tokens", flush=True)


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


def load(checkpoint: Path) -> PreTrainedModel:
    """Load a checkpoint in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=False
    )
    return model


def prepare(study: Study, corpora: Path, folder: Path) -> Data:
    """Train the tokenizer and pack the rows, or load what an earlier call made."""
    data = study["data"]
    paths = {split: corpora / f"{data['domain']}.{split}.jsonl.gz" for split in ("train", "validation")}
    if not (folder / "tokenizer").is_dir():
        train_tokenizer(paths["train"], data["vocab_size"], data["sequence_length"]).save_pretrained(
            folder / "tokenizer"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    for split, path in paths.items():
        if not (folder / split).is_dir():
            cache = folder / "cache"
            pack(
                path,
                folder / split,
                tokenizer=tokenizer,
                sequence_length=data["sequence_length"],
                cache_dir=str(cache),
            )
            shutil.rmtree(cache)
    train, validation = (load_packed(folder / split, tokenizer=tokenizer) for split in paths)
    return Data(train, validation.select(range(min(data["validation_rows"], len(validation)))))


def train_tokenizer(path: Path, vocab_size: int, row_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on a corpus."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(path), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, model_max_length=row_length)


def texts(path: Path) -> Iterator[str]:
    """Yield the text of every document."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def provenance() -> dict[str, str]:
    """Return which code made a run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    packages = ("hf-warmscale", "torch", "transformers", "datasets")
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def show_prediction(work: Path) -> None:
    """Predict the larger size of the smoke run from the folders of all its runs."""
    folders = sorted((work / "runs").glob("scratch-*-tpp*"))
    found = predict_loss(folders, hidden_size=64, tokens=200_000, bootstrap=5)
    print(f"predicted from {len(folders)} folders: {found.loss:.4f} nats; flags: {found.flags}")


if __name__ == "__main__":
    main()
