"""The examples in the docstrings of public names run, on small stand-ins for what they name."""

import contextlib
import doctest
import inspect
import io
import json
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import load_dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import hf_warmscale
from hf_warmscale.cli import main
from hf_warmscale.cli.mup.export import EXPORT
from hf_warmscale.cli.scaling.fit import FIT
from hf_warmscale.cli.scaling.predict import PREDICT
from hf_warmscale.cli.verb import Verb
from hf_warmscale.scaling import published
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.training.recipe.run import train
from tests.cli.workspace import documents, make_tokenizer, make_workspace
from tests.conftest import perturb
from tests.scaling.run_folders import write_run
from tests.test_package import PACKAGES

ELSEWHERE = {
    "lm_eval_loss": "tests/merging/objectives/test_lm_eval.py",
    "push_to_hub": "tests/hub/test_push.py",
    "quantization_config": "tests/compression/torchao_worker.py",
    "run_quickstart": "tests/quickstart/test_quickstart.py",
}
"""Names whose example needs lm-eval, a Hub, torchao or minutes, and the test file that makes the same call."""

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
    "8192000": "512",
    "('english', 1000, 512)": "('english', 4, 512)",
    "3.217": "...",
    "\n        1024\n": "\n        32\n",
    "shape=(49152, 576), dtype=torch.bfloat16": "shape=(300, 32), dtype=torch.float32",
    "shape=(8, 28672, 4096), dtype=torch.bfloat16": "shape=(2, 32, 16), dtype=torch.float32",
    '"1152"': '"64"',
    "count=6_400": "count=3",
    "num_rows=1_000_000": "num_rows=4",
    "sequence_length=2048": "sequence_length=32",
    "batch_size=4)": "steps=1)",
    "\n    2048\n": "\n    32\n",
    "small_tuned, prompts)": "small_tuned, prompts, block_lengths=(1,), max_new_tokens=2)",
    'output="between"': 'output="between", alphas=(0.0, 1.0)',
    'sizes=[64, 128, 256], lrs=lrs, output="lrs"': 'sizes=[16, 32], rules=["mup"], lrs=lrs[:3], seeds=1, output="lrs"',
    "sizes=[64, 128, 256], lr=2**-7": "sizes=[16, 32], lr=2**-7, steps=1, seeds=1",
    "sizes=[64, 128, 256]).slopes": "sizes=[16, 32], steps=1, seeds=1).slopes",
    '("packed"), sizes=[64, 128, 256])': '("packed"), sizes=[16, 32], steps=1, seeds=1, tolerance=9)',
    'ProxyTask("packed")': 'ProxyTask("packed", steps=1, batch_size=2, validation_rows=1)',
    "{'completep': True, 'standard': False}": "{'completep': ..., 'standard': ...}",
    "bits=(8, 6, 4), sparsities=(0,)": "bits=(8,), sparsities=(0,)",
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


MODELS = [
    *("small", "base", "tuned", "HuggingFaceTB/SmolLM2-135M"),
    *("EleutherAI/pythia-410m@step1000", "EleutherAI/pythia-410m@step143000"),
]
SIZES = (1e7, 2e7, 4e7, 8e7, 1.6e8)


def save_mixtral(folder: Path) -> None:
    """Save a mixture of experts, which has other names in its files than in the live model."""
    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)


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
    for name in MODELS:
        model.save_pretrained(here / name)
        make_tokenizer().save_pretrained(here / name)
    perturb(model, std=0.02)
    model.save_pretrained(here / "tuned")
    save_mixtral(here / "mistralai/Mixtral-8x7B-v0.1")
    rows = [{"N": n, "D": d, "loss": published().predict(N=n, D=d)} for n in SIZES for d in (5e8, 2e9, 8e9)]
    (here / "losses.csv").write_text("N,D,loss\n" + "".join("{N},{D},{loss}\n".format(**row) for row in rows))
    web = here / "HuggingFaceFW/fineweb"
    web.mkdir(parents=True)
    shutil.copy(here / "train.jsonl", web)
    healing = (here / "stage.yaml").read_text().replace("output_dir: run", "output_dir: healing").split("\n", 1)[1]
    (here / "heal.yaml").write_text(healing.replace("max_steps: 4", "max_steps: 1") + "distillation: {}\n")
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


@cache
def public_names() -> dict[str, Any]:
    """Return what examples need not import."""
    names = {each: item for room in PACKAGES for each, item in vars(import_module(room)).items()}
    names |= {each: getattr(hf_warmscale, each) for each in hf_warmscale.__all__}
    names |= {each: getattr(transformers, each) for each in ("AutoConfig", "AutoModelForCausalLM", "Trainer")}
    names |= {"SFTTrainer": transformers.Trainer, "SFTConfig": transformers.TrainingArguments}
    names |= {"torch": torch, "json": json, "Path": Path, "dataclass": dataclass}
    return {**names, "PeftModel": peft.PeftModel, "load_dataset": load_dataset, "folder": "folder"}


def stand_ins(name: str, item: Any) -> dict[str, Any]:
    """Return what an example takes as given, in the current folder."""
    typed = (item.__doc__ or "") + SETUPS.get(name, "")
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    given: dict[str, Any] = {
        "texts": documents(4), "held_out": documents(8), "documents": documents(8), "tokenizer": tokenizer,
        "held_out_mix": [documents(2), documents(4)[2:]], "inputs": tokenizer(["To err"], return_tensors="pt"),
    }  # fmt: skip
    if "rows" in typed or "english" in typed or "german" in typed:
        given |= dict.fromkeys(ROWS, load_packed("packed"))
    if "model" in typed or "small" in typed:
        given |= dict.fromkeys(("model", "small"), AutoModelForCausalLM.from_pretrained("small"))
    made = {**public_names(), **given}
    exec(SETUPS.get(name, ""), made)
    return made


ROWS = ("rows", "english", "german", "english_validation", "german_validation")
ARGS = "args = ContinualTrainingArguments('out', use_cpu=True, save_strategy='no', per_device_train_batch_size=2)\n"
PLAIN = "args = Args('out', use_cpu=True, save_strategy='no', max_steps=5)\n"
MIXTURE = "mixture = ReplayMixture({'german': german, 'english': english}, [0.5, 0.5])\n"
STAGE = MIXTURE + "stage = Stage('heal', 'constant', mixture, max_steps=3)\n"
TUNED = "large, small_tuned = [AutoModelForCausalLM.from_pretrained('small') for _ in range(2)]\n"
GROWN = "grow_checkpoint('small', 'grown', hidden_size=64)\n"
MUP = "from tests.cli.workspace import make_model\nmodel = make_model()\nconfig = model.config\n"
EMULATED_ALONE = "model = EmulatedFineTuningForCausalLM(base=large, tuned=small_tuned, reference=small)\n"
OTHER = "from tests.evaluation.tiny import tiny_tokenizer\nother = tiny_tokenizer()\n"
KERNELS = "model = apply_majority_kernels(model, expansion=3)\n"
EMULATED = "model = EmulatedFineTuningForCausalLM(base=large, tuned=[small_tuned, small], reference=small)\n"
ALPHAS = """
old, new, others = documents[:2], documents[2:4], {"documentation": documents[4:6], "german": documents[6:]}
"""
BUILD = (
    MUP
    + """
def MyModel(width):
    return MupForCausalLM(at_size(config, "width", width))
my_groups = mup_param_groups
"""
)
SETUPS = {
    "AlphaSweep": "old, others = documents[:4], documents[4:]\n",
    "AverageCheckpoints": ARGS + STAGE,
    "BlockSpeed": TUNED + EMULATED + "prompts = [inputs.input_ids]\n",
    "MemberSource": TUNED + EMULATED_ALONE,
    "MergeSource": TUNED + EMULATED_ALONE,
    "RecipeHealing": "grow_checkpoint('small', 'large', hidden_size=64)\n",
    "ShrinkReceipt": GROWN,
    "assert_coordinates": BUILD,
    "assert_lr_transfers": "def my_loss(width, lr, seed):\n    return 3 + (1e3 * lr - 8) ** 2\n",
    "check_models": BUILD,
    "choose_block_length": TUNED + EMULATED + "prompts = [inputs.input_ids]\n",
    "combine_log_probs": "large, tuned, small = torch.randn(3, 2, 9).log_softmax(-1)\n",
    "compare_tokenizers": OTHER,
    "coordinate_check": MUP,
    "lr_transfer": MUP,
    "majority_state_dict": KERNELS,
    "make_card": "merge_checkpoints(['run/checkpoint-900', 'run/checkpoint-1000'], 'merged')\n",
    "sweep_alphas": ALPHAS,
    "train_model": MUP,
    "train_proxy": MUP,
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


@pytest.mark.parametrize("name", sorted(set(hf_warmscale.__all__) - {*ELSEWHERE, "__version__"}))
def test_the_example_runs(name: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here)
    with contextlib.chdir(here):
        item = getattr(hf_warmscale, name)
        run(name, examples(item), stand_ins(name, item))


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


# ---- Every public name ----

ROOMS = [room for room in PACKAGES if hasattr(import_module(room), "__all__")]


def own_names(room: str) -> list[str]:
    """Return the classes and functions that a room exports and the package does not."""
    exported = import_module(room)
    items = {name: getattr(exported, name) for name in exported.__all__ if name not in hf_warmscale.__all__}
    return [name for name, item in items.items() if inspect.isclass(item) or inspect.isfunction(item)]


@pytest.mark.parametrize("room", ROOMS)
def test_the_examples_of_a_room_run(room: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here)
    with contextlib.chdir(here):
        for name in [each for each in own_names(room) if each not in ELSEWHERE]:
            own = vars(import_module(room))
            names, item = stand_ins(name, own[name]), own[name]
            run(name, examples(item), names | {each: own[each] for each in own["__all__"]})


@pytest.mark.parametrize("verb", [EXPORT, FIT, PREDICT], ids=lambda verb: verb.name)
def test_the_example_in_the_help_of_a_verb_runs(
    verb: Verb, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the verbs that the walks of `tests/cli` do not type, but for the studies of `mup`: see the room `tuning`."""
    here = tmp_path / "here"
    shutil.copytree(made, here)
    shutil.copytree(here / "model", here / "mup-model")
    typed = verb.example.replace("\\\n", " ")
    for name, less in SMALLER_TYPED.items():
        typed = typed.replace(name, less)
    with contextlib.chdir(here):
        assert main(shlex.split(typed)[1:]) == 0, capsys.readouterr().err


SMALLER_TYPED = {
    "runs/256 runs/512 runs/768 runs/1024": "runs/32 runs/64 runs/96 runs/128 --bootstrap 3",
    "--hidden-size 4096 --tokens 20B": "--hidden-size 192 --tokens 20M",
    "--output law": "--output law --bootstrap 3",
}


def test_every_public_name_has_an_example() -> None:
    public = {name: getattr(import_module(room), name) for room in ROOMS for name in own_names(room)}
    public |= {name: getattr(hf_warmscale, name) for name in hf_warmscale.__all__ if name != "__version__"}
    assert [name for name, item in public.items() if not examples(item)] == []


def test_an_example_that_runs_elsewhere_is_called_there() -> None:
    for name, file in ELSEWHERE.items():
        assert f"{name}(" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8"), name
