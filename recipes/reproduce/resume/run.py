"""Resume a stage in the middle and compare every tensor with that of the uninterrupted run, family by family.

    python recipes/reproduce/resume/run.py --work WORK [--only qwen3_moe ...]

Most of these families store their weights under other names than the live model has. Each is trained in Python and
through `warmscale train`, with all weights and with LoRA adapters alone, on one process and on two (DDP on gloo):
tiny models of two blocks, four steps, attention dropout on, resumed after the second. It writes results.json and
README.md.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_warmscale.architecture import Axis
from hf_warmscale.architecture.tiny import tiny_config
from hf_warmscale.checkpoints import write_text
from hf_warmscale.cli import main as warmscale
from hf_warmscale.report import markdown_table
from hf_warmscale.studies import write_result
from hf_warmscale.training import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage
from hf_warmscale.training.data.packing import load_packed, pack
from hf_warmscale.training.data.separation import tiny_sizes
from hf_warmscale.training.launch import launched_processes

HERE = Path(__file__).parent
FAMILIES = ("qwen3_moe", "mixtral", "gpt_neox", "deepseek_v3", "phimoe", "exaone", "llama")
PROCESSES = (1, 2)
STEPS, MIDDLE = 4, 2
# No dropout: peft has none for experts that are one tensor.
LORA = {"r": 2, "lora_dropout": 0.0, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}
ATTENTION_ONLY = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""For phimoe, whose router is a linear layer that returns a tuple, which peft cannot wrap."""
ARGUMENTS: dict[str, Any] = {
    "learning_rate": 0.01, "save_steps": MIDDLE, "logging_steps": 1, "use_cpu": True, "report_to": "none",
    "disable_tqdm": True,
}  # fmt: skip


def main() -> None:
    """Parse the arguments, start the processes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train_all(arguments.work, arguments.only)
        return
    rows = []
    for processes in PROCESSES:
        work = arguments.work / f"processes-{processes}"
        make_data(work)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        worker = [str(Path(__file__).resolve()), "--work", str(work), "--worker", "--only", *arguments.only]
        subprocess.run([*launcher, *worker], check=True)
        rows += json.loads((work / "rows.json").read_text())
    write_result(HERE / "results.json", {"rows": rows}, code=HERE)
    write_report(rows)


def make_data(work: Path) -> None:
    """Write a tokenizer and two packed sources of random words."""
    words = [f"w{number}" for number in range(70)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<eos>", "<unk>", *words])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(str(work / "tokenizer"))
    for source, some in (("new", words[:40]), ("old", words[30:])):
        draw = random.Random(source)
        lines = [json.dumps({"text": " ".join(draw.choices(some, k=draw.randint(5, 30)))}) for _ in range(60)]
        (work / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
        pack(work / f"{source}.jsonl", work / source, tokenizer=fast, sequence_length=16)


def train_all(work: Path, families: list[str]) -> None:
    """Train, resume and compare every case on the processes that were launched; the first writes the rows."""
    rows = []
    for family in families:
        fields = tiny_fields(family)
        for trained in ("all weights", "adapters"):
            for train in (in_python, on_the_command_line):
                where = train.__name__.replace("_", " ")
                folder = work / family / trained.replace(" ", "-") / train.__name__
                train(folder / "whole", fields, trained, work)
                if is_first():
                    name = f"checkpoint-{MIDDLE}"
                    shutil.copytree(folder / "whole" / name, folder / "half" / name)
                wait()
                train(folder / "half", fields, trained, work)
                wait()
                tensors, differ = compare(folder / "whole", folder / "half")
                rows.append({"family": family, "trained": trained, "interface": where, "tensors": tensors})
                rows[-1] |= {"processes": launched_processes(), "differ": differ}
                if is_first():
                    print(*rows[-1].values(), flush=True)
    if is_first():
        (work / "rows.json").write_text(json.dumps(rows))


def tiny_fields(family: str) -> dict[str, Any]:
    """Return the fields of a config with two blocks and widths of whole 16 bytes, as the kernels of experts need."""
    config = CONFIG_MAPPING[family]()
    sizes = {axis: -(-size // 4) * 4 for axis, size in tiny_sizes(config).items()}
    return tiny_config(config, {**sizes, Axis.LAYERS: 2}).to_diff_dict() | {"attention_dropout": 0.1}


def adapters_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the `LoraConfig` of a family."""
    return LORA | (ATTENTION_ONLY if fields["model_type"] == "phimoe" else {})


def in_python(output: Path, fields: dict[str, Any], trained: str, work: Path) -> None:
    """Train a stage of `ContinualTrainer`; continue it if the folder holds a checkpoint."""
    from peft import LoraConfig, get_peft_model

    resumed = output.exists()
    AcceleratorState._reset_state()
    # Adapters need the same base; all weights come from the checkpoint, so others are there before.
    torch.manual_seed(1 if resumed and trained == "all weights" else 0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    if trained == "adapters":
        model = get_peft_model(model, LoraConfig(**adapters_of(fields)))
    mixture = ReplayMixture({name: load_packed(work / name) for name in ("new", "old")}, {"new": 0.7, "old": 0.3})
    size = 4 // launched_processes()
    args = ContinualTrainingArguments(output_dir=str(output), per_device_train_batch_size=size, **ARGUMENTS)
    trainer = ContinualTrainer(model, args, stage=Stage("resumed", "rewarm_cosine", mixture, max_steps=STEPS))
    trainer.train(resume_from_checkpoint=resumed or None)


def on_the_command_line(output: Path, fields: dict[str, Any], trained: str, work: Path) -> None:
    """Run `warmscale train`, which continues by itself."""
    AcceleratorState._reset_state()
    content = {
        "model_config": fields, "tokenizer_name_or_path": str(work / "tokenizer"), "stage": "resumed",
        "max_steps": STEPS, "output_dir": str(output), "per_device_train_batch_size": 4 // launched_processes(),
        "mixture": {name: {"path": str(work / name), "weight": share} for name, share in (("new", 0.7), ("old", 0.3))},
        **ARGUMENTS, **({"lora": adapters_of(fields)} if trained == "adapters" else {}),
    }  # fmt: skip
    file = work / f"{output.parent.parent.parent.name}-{os.environ.get('RANK', '0')}.yaml"
    file.write_text(json.dumps(content))
    if warmscale(["train", str(file)]) != 0:
        raise SystemExit(f"{file} failed")


def compare(whole: Path, half: Path) -> tuple[int, int]:
    """Return how many tensors the last checkpoints hold, and how many of them differ in any bit."""
    (name,) = (path.name for path in (whole / f"checkpoint-{STEPS}").glob("*model.safetensors"))
    expected, found = (load_file(run / f"checkpoint-{STEPS}" / name) for run in (whole, half))
    assert expected.keys() == found.keys()
    return len(expected), sum(not torch.equal(value, found[key]) for key, value in expected.items())


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def write_report(rows: list[dict[str, Any]]) -> None:
    """Write the table: tensors that differ of those that are stored."""
    cases = list(dict.fromkeys((row["trained"], row["interface"], row["processes"]) for row in rows))
    found = {
        (r["family"], r["trained"], r["interface"], r["processes"]): f"{r['differ']} of {r['tensors']}" for r in rows
    }
    table = [
        {"family": family}
        | {
            f"{trained}, {where}, {n} process{'es' * (n > 1)}": found.get((family, trained, where, n), "")
            for trained, where, n in cases
        }
        for family in dict.fromkeys(row["family"] for row in rows)
    ]
    text = (
        "# Is a resumed run the uninterrupted one?\n\n"
        "    python recipes/reproduce/resume/run.py --work WORK\n\n"
        f"Tensors of the last checkpoint that differ in any bit: {STEPS} steps in one go, and {STEPS} steps of which "
        "the second half was resumed. Tiny models of two blocks, dropout on; versions and commit in results.json.\n\n"
        + markdown_table(table)
    )
    write_text(HERE / "README.md", text)


if __name__ == "__main__":
    main()
