"""Train the models of the study: a small base, a large one grown from it, and both tuned on each new domain.

    python recipes/reproduce/decoding/train.py --corpora CORPORA --work WORK

`CORPORA` holds `<domain>.<split>.jsonl.gz`. Every run is one stage of `ContinualTrainer`; what has run is stored in
`results/runs` and not repeated, and an interrupted run goes on inside the run. The models stay in `WORK/models`. One
thread; about 45 minutes of one core.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from transformers.utils import logging

from hf_warmscale import (
    ContinualTrainer,
    ContinualTrainingArguments,
    ReplayMixture,
    Stage,
    get_schedule,
    grow_from_pretrained,
)
from hf_warmscale.checkpoints import run_checkpoints, save_model
from hf_warmscale.studies import PlannedRun, open_study, run_all
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.tuning import ProxyTask

HERE = Path(__file__).parent
STUDY, RESULTS = HERE / "study.yaml", HERE / "results"
sys.path.insert(0, str(HERE.parent / "corpora"))
import corpora as text  # noqa: E402


def main() -> None:
    """Parse the arguments and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of <domain>.<split>.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for rows and models")
    parser.add_argument("--output", type=Path, default=RESULTS / "runs", help="a folder for these runs alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    disable_progress_bars()
    design = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    prepare_domains(design, arguments.corpora, arguments.work)
    study = open_study(arguments.output, training_part(design), tokens=hash_of(design, arguments.work), code=HERE)
    run_all(study, list(list_runs(design)), lambda run: train(design, run, arguments.work))
    print(study.summary([run.name for run in list_runs(design)]))


def training_part(design: dict[str, Any]) -> dict[str, Any]:
    """Return what the trained models depend on: how they are measured later is not part of it."""
    return {name: value for name, value in design.items() if name not in ("trend", "speed", "documents")}


def list_runs(design: dict[str, Any]) -> Iterator[PlannedRun]:
    """Yield every run; the first domain of all seeds comes before the others."""
    base, seeds = design["base"], design["seeds"]
    for seed in seeds:
        yield _planned("small", base, seed, None)
        yield _planned("large", base, seed, f"small-seed{seed}")
    for domain in design["domains"]:
        for kind, start in (("small_tuned", "small"), ("large_tuned", "large")):
            for seed in seeds:
                yield _planned(kind, domain, seed, f"{start}-seed{seed}")


def _planned(kind: str, domain: str, seed: int, start: str | None) -> PlannedRun:
    name = f"{kind}-{domain}-seed{seed}" if kind.endswith("tuned") else f"{kind}-seed{seed}"
    content = {"kind": kind, "domain": domain, "seed": seed, "start": start}
    return PlannedRun(name, content, (start,) if start else ())


def train(design: dict[str, Any], run: PlannedRun, work: Path) -> dict[str, Any]:
    """Train one model, or what is left of it, save it, and return its loss on the domain it was trained on."""
    kind, domain, seed = run.content["kind"], run.content["domain"], run.content["seed"]
    settings, training, folder = design["runs"][kind], design["training"], work / "runs" / run.name
    torch.manual_seed(seed)
    arguments = ContinualTrainingArguments(
        output_dir=str(folder),
        weight_decay=training["weight_decay"],
        adam_beta1=training["betas"][0],
        adam_beta2=training["betas"][1],
        max_grad_norm=training["clip"],
        per_device_train_batch_size=training["batch_size"],
        per_device_eval_batch_size=32,
        save_steps=500,
        save_total_limit=1,
        logging_steps=100,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    # The tuned models and the large base see other rows than the small base did.
    mixture = ReplayMixture({"text": train_rows(work, domain)}, {"text": 1.0}, seed=1000 * (kind != "small") + seed)
    schedule = get_schedule("rewarm_cosine", learning_rate=settings["lr"], warmup=training["warmup"], min_lr=0.0)
    stage = Stage(run.name, schedule, mixture, max_steps=settings["steps"])
    held_out = validation_rows(work, domain, design["validation_rows"])
    model = first_model(design, run, work)
    trainer = ContinualTrainer(model, arguments, stage=stage, eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=bool(folder.is_dir() and run_checkpoints(folder)))
    loss = trainer.evaluate()["eval_loss"]
    if not (work / "models" / run.name).exists():
        save_model(model, work / "models" / run.name, tokenizer=load_tokenizer(work))
    return {"steps": settings["steps"], "parameters": model.num_parameters(), "validation_loss": loss}


def first_model(design: dict[str, Any], run: PlannedRun, work: Path) -> PreTrainedModel:
    """Return the model that a run starts from: a fresh one, a stored one, or for the large base a grown one."""
    if run.content["start"] is None:
        shape: dict[str, Any] = {**design["models"]["small"], "vocab_size": 1024, "max_position_embeddings": 512}
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work / "models" / run.content["start"])
    if run.content["kind"] != "large":
        return model
    return grow_from_pretrained(model, **design["models"]["large"], **design["growth"], seed=run.content["seed"])


def prepare_domains(design: dict[str, Any], corpora: Path, work: Path) -> None:
    """Pack every split of every domain with the tokenizer of the base domain, unless it is there."""
    tokenizer = text.prepare_tokenizer(corpora, work, [design["base"]])
    for domain in (design["base"], *design["domains"]):
        for split in text.SPLITS:
            if not (folder := work / "rows" / f"{domain}.{split}").exists():
                texts = up_to(text.documents(corpora, split, [domain]), design["training_bytes"])
                text.pack_texts(texts, folder, tokenizer, design["sequence_length"], work)


def up_to(texts: Iterator[str], size: int) -> Iterator[str]:
    """Yield texts until they hold `size` bytes."""
    for document in texts:
        if size <= 0:
            return
        size -= len(document.encode())
        yield document


def train_rows(work: Path, domain: str) -> Dataset:
    """Return the packed rows to train on."""
    return load_packed(work / "rows" / f"{domain}.train")


def validation_rows(work: Path, domain: str, count: int) -> Dataset:
    """Return at most `count` packed validation rows, spread evenly."""
    rows = load_packed(work / "rows" / f"{domain}.validation")
    return rows.select(sorted({index * len(rows) // count for index in range(count)}))


def hash_of(design: dict[str, Any], work: Path) -> str:
    """Return the hash of the tokens of all domains."""
    hashes = []
    for domain in (design["base"], *design["domains"]):
        train, validation = (str(work / "rows" / f"{domain}.{split}") for split in text.SPLITS)
        hashes.append(ProxyTask(train, validation=validation).tokens_hash())
    return "-".join(each[:16] for each in hashes)


def load_tokenizer(work: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the study."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(work / "tokenizer")
    return tokenizer


if __name__ == "__main__":
    main()
