"""The examples in the docstrings of public names run, on small stand-ins for what they name."""

import contextlib
import doctest
import inspect
import io
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_warmscale
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.training.recipe.run import train
from tests.cli.workspace import documents, make_tokenizer, make_workspace
from tests.conftest import perturb
from tests.scaling.run_folders import write_run
from tests.test_package import PACKAGES

ELSEWHERE = {"push_to_hub"}
"""It needs a Hub; `tests/hub` has one."""

SMALLER = {
    "hidden_size=1152": "hidden_size=64",
    "num_hidden_layers=40": "num_hidden_layers=3",
    "num_hidden_layers=24": "num_hidden_layers=1",
    "max_tokens=10_000_000": "max_tokens=256",
    "until_tokens=1_000_000_000": "until_tokens=640",
    "max_steps=500": "max_steps=1",
    "every=200": "every=1",
    "k=64": "k=4",
    "max_new_tokens=64": "max_new_tokens=3",
    "bits=(8, 6, 4)": "bits=(8,)",
    "texts, 2_000": "texts, 4",
    "parameters=100e6": "parameters=30e3, n_trials=2",
    "documents[:200]": "documents[:4]",
    "documents[200:]": "documents[4:]",
    'space="simplex"': 'space="simplex", n_trials=2',
    "factors=factors), ...)": "factors=factors), train_dataset=german)",
    "tokens=20_000_000)": "tokens=20_000_000, bootstrap=0)",
    "\n    90\n": "\n    9\n",
    "{'o_proj': 0.5, 'down_proj': 0.5, 'lm_head': 0.0625}": "{'lm_head': 0.5}",
}
"""What an example says of a real model, and what is run: 9 tensors in the one new block of the small model."""


def examples(item: Any) -> list[doctest.Example]:
    """Return the statements of the examples of a class or a function, with what they should print."""
    text = (item.__doc__ or "") + "\n"
    for typed, less in SMALLER.items():
        text = text.replace(typed, less)
    found = doctest.DocTestParser().get_examples("\n".join(line for line in text.splitlines() if "```" not in line))
    if found or "```python" not in text:
        return found
    block = text.split("```python\n")[1].split("```")[0]
    return [doctest.Example("\n".join(line.removeprefix("    ") for line in block.splitlines()) + "\n", "")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and runs under the names that the examples use."""
    here = make_workspace(tmp_path_factory.mktemp("examples"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    perturb(model, std=0.02)
    for name in ("small", "HuggingFaceTB/SmolLM2-135M"):
        model.save_pretrained(here / name)
        make_tokenizer().save_pretrained(here / name)
    with contextlib.chdir(here):
        options = "--model_name_or_path small --stage english --save_steps 1 --output_dir run --eval_strategy no"
        train("stage.yaml", [*options.split(), "--mixture", '{"english": {"path": "packed", "weight": 1.0}}'])
        for step, target in {2: "run/checkpoint-800", 3: "run/checkpoint-900", 4: "run/checkpoint-1000"}.items():
            shutil.copytree(f"run/checkpoint-{step}", target)
        shutil.copytree("run/checkpoint-4", "runs/english/checkpoint-1000")
        shutil.copytree("run/checkpoint-4", "runs/trunk/checkpoint-8000")
        shutil.copytree("run", "runs/base")
        adapter = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(target_modules=["q_proj"], r=2))
        adapter.save_pretrained("adapter")
        for width, loss in ((32, 5.0), (64, 4.0), (96, 3.5), (128, 3.2)):
            write_run(Path("runs") / str(width), hidden_size=width, tokens=20_000_000, loss=loss)
    return here


def stand_ins(name: str) -> dict[str, Any]:
    """Return what an example takes as given, in the current folder."""
    public = {each: item for room in PACKAGES for each, item in vars(import_module(room)).items()}
    public |= {each: getattr(hf_warmscale, each) for each in hf_warmscale.__all__}
    public |= {each: getattr(transformers, each) for each in ("AutoModelForCausalLM", "Trainer")}
    tokenizer, rows = make_tokenizer(), load_packed("packed")
    tokenizer.padding_side = "left"
    small = AutoModelForCausalLM.from_pretrained("small")
    given: dict[str, Any] = {
        "torch": torch, "PeftModel": peft.PeftModel, "folder": "folder", "tokenizer": tokenizer,
        "english": rows, "german": rows, "english_validation": rows, "german_validation": rows,
        "texts": documents(4), "held_out": documents(8), "documents": documents(8),
        "inputs": tokenizer(["To err"], return_tensors="pt"), "small": small, "model": small,
        "held_out_mix": [documents(2), documents(4)[2:]], "rows": rows, "Path": Path,
    }  # fmt: skip
    made = {**public, **given}
    exec(SETUPS.get(name, ""), made)
    return made


ARGS = "args = ContinualTrainingArguments('out', use_cpu=True, save_strategy='no', per_device_train_batch_size=2)\n"
PLAIN = "args = Args('out', use_cpu=True, save_strategy='no', max_steps=5)\n"
MIXTURE = "mixture = ReplayMixture({'german': german, 'english': english}, [0.5, 0.5])\n"
STAGE = MIXTURE + "stage = Stage('heal', 'constant', mixture, max_steps=3)\n"
TUNED = "large, small_tuned = [AutoModelForCausalLM.from_pretrained('small') for _ in range(2)]\n"
GROWN = "grow_checkpoint('small', 'grown', hidden_size=64)\n"
MUP = "from tests.cli.workspace import make_model\nmodel = make_model()\nconfig = model.config\n"
KERNELS = "model = apply_majority_kernels(model, expansion=3)\n"
EMULATED = "model = EmulatedFineTuningForCausalLM(base=large, tuned=[small_tuned, small], reference=small)\n"
SETUPS = {
    "CheckpointWriter": "checkpoint = open_checkpoint('small')\n",
    "DistillationTrainer": TUNED + ARGS + MIXTURE,
    "HealingTrainer": TUNED + ARGS + MIXTURE,
    "EmulatedFineTuningConfig": TUNED + EMULATED,
    "EmulatedFineTuningForCausalLM": TUNED,
    "MagnitudePruningCallback": ARGS + STAGE,
    "ExportReceipt": MUP + "model.save_pretrained('mup-1b')\n",
    "MupForCausalLM": MUP,
    "TableRow": MUP,
    "TrainingFactors": MUP,
    "TeacherCache": TUNED + ARGS + STAGE,
    "UncertaintyRouter": "model = PeftModel.from_pretrained(model, 'adapter')\n",
    "anneal_stage": ARGS + "mixture = ReplayMixture({'english': english}, [1.0])\n",
    "apply_majority_kernels": "from transformers import TrainingArguments as Args\n" + PLAIN,
    "at_size": MUP,
    "content_hash": "checkpoint = open_checkpoint('small')\n",
    "export_checkpoint": MUP + "model.save_pretrained('mup-1b')\n",
    "fold_majority_kernels": KERNELS,
    "fold_multipliers": MUP,
    "grow_adapter": "grow_checkpoint('small', 'large', hidden_size=64)\n",
    "grow_optimizer_state": "import shutil\nfrom transformers import TrainingArguments as Args\n" + PLAIN
    + "Trainer(model, Args('plain', use_cpu=True, max_steps=1, save_steps=1), train_dataset=german).train()\n"
    + "shutil.rmtree('run/checkpoint-1000')\nshutil.copytree('plain/checkpoint-1', 'run/checkpoint-1000')\n"
    + "model = grow_from_pretrained('run/checkpoint-1000', hidden_size=64)\n",
    "grow_vocabulary": "larger = extend_tokenizer(tokenizer, texts, 4)\n",
    "init_mup": "config = base_config = small.config\n",
    "is_mup": MUP,
    "muon_param_groups": MUP,
    "mup_optimizer": ARGS + MUP + "data = german\n",
    "ladder": MUP,
    "mup_param_groups": MUP,
    "mup_table": MUP,
    "open_study": "import numpy as np\nids, train = np.arange(4), lambda lr: 3.5\n",
    "paired_bootstrap": "merged = last = small\nheld_out = EvaluationSet.from_documents(documents, tokenizer)\n",
    "read_runs": "run_all(open_study('losses', {}), [PlannedRun('seed-0')], lambda run: {'loss': 3.5})\n",
    "require_one_language": "import shutil, warnings\nshutil.copytree('small', 'large')\n",
    "save_model": "model = grow_from_pretrained('small', num_hidden_layers=3)\n",
    "shrink_checkpoint": GROWN,
    "token_nll": "ids = inputs.input_ids\n",
    "training_factors": MUP,
}  # fmt: skip
"""What is made before an example, beside what `stand_ins` gives to all of them."""


@pytest.mark.parametrize("name", sorted(set(hf_warmscale.__all__) - ELSEWHERE - {"__version__"}))
def test_the_example_runs(name: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here)
    with contextlib.chdir(here):
        run(name, examples(getattr(hf_warmscale, name)), stand_ins(name))


def run(name: str, statements: list[doctest.Example], names: dict[str, Any]) -> None:
    """Run an example, and compare what it prints."""
    assert statements, f"{name} has no example"
    for each in statements:
        shown = io.StringIO()
        mode = "single" if each.source.count("\n") == 1 or each.want else "exec"
        with contextlib.redirect_stdout(shown):
            exec(compile(each.source, f"example of {name}", mode), names)
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert not each.want or doctest.OutputChecker().check_output(each.want, shown.getvalue(), options), (
            f"{each.source!r} of {name} printed {shown.getvalue()!r} in place of {each.want!r}"
        )


# ---- The rooms' own names ----

WITHOUT: dict[str, set[str]] = {
    "architecture": set(),
    "checkpoints": {
        "ModelWeights",
        "RunFolder",
        "compare_tokenizers",
        "load_config",
        "load_model",
        "load_tokenizer",
        "open_checkpoint",
    },
    "evaluation": set(),
    "merging": {"AlphaSweep", "MergeReceipt", "MergeResult", "MergeSource", "lm_eval_loss", "sweep_alphas"},
    "mup": set(),
    "report": set(),
    "scaling": {
        "Backtest",
        "Frame",
        "Prediction",
        "Step",
        "Tolerances",
        "draw_law",
        "hold_out",
        "ladder_frame",
        "measure_throughput",
        "read_run",
        "roll_out",
    },
    "studies": set(),
    "training": {
        "AverageCheckpoints",
        "ContinualArguments",
        "ContinualMixin",
        "Schedule",
        "SeenRows",
        "StageLR",
        "StageRecord",
        "StreamedRows",
        "constant_checkpoints",
        "majority_state_dict",
        "plot_schedule",
        "seen_rows",
    },
    "tuning": {
        "CoordinateResult",
        "TransferResult",
        "assert_coordinates",
        "assert_lr_transfers",
        "check_models",
        "coordinate_check",
        "lr_transfer",
        "train_model",
        "train_proxy",
    },
}
"""The rooms whose names have examples that run, with the names that have none, or one that needs too much."""


def own_names(room: str) -> list[str]:
    """Return the classes and functions that a room exports and the package does not."""
    exported = import_module(f"hf_warmscale.{room}")
    names = [name for name in exported.__all__ if name not in hf_warmscale.__all__ and name not in WITHOUT[room]]
    items = {name: getattr(exported, name) for name in names}
    return [name for name, item in items.items() if inspect.isclass(item) or inspect.isfunction(item)]


@pytest.mark.parametrize("room", WITHOUT)
def test_the_examples_of_a_room_run(room: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here)
    with contextlib.chdir(here):
        for name in own_names(room):
            own = vars(import_module(f"hf_warmscale.{room}"))
            names, item = stand_ins(name) | {each: own[each] for each in own["__all__"]}, own[name]
            run(name, examples(item), names)
