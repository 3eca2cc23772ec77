"""Bad input to every verb: one sentence, exit code 2, nothing half-written, the input untouched.

Some mistakes are made at a real shell; the others in this process, which has torch loaded already.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_warmscale.cli import main
from hf_warmscale.merging import search_merge
from tests.cli.shell import COMMAND, assert_refused, assert_sentence, files_below, warmscale
from tests.cli.workspace import SENTENCES, make_model

TO_A_BUDGET = "shrink model out --parameters 20K --calibration stage.yaml --eval-data held-out.jsonl"
REFUSALS = {
    "no such model": ("grow ./none out --hidden-size 64", ["./none", "no folder"]),
    "no such model on a Hub out of reach": ("grow me/none out --hidden-size 64", ["me/none"]),
    "a run in place of its checkpoint": ("grow finished out --hidden-size 64", ["finished/checkpoint-20"]),
    "a run in place of a tuned model": (
        "generate model --tuned finished --reference model --prompt hi",
        ["finished has no config.json", "finished/checkpoint-20"],
    ),
    "a balance without routers": (
        "train stage.yaml --output_dir out --router_aux_loss_coef 0.1",
        ["has no balance loss"],
    ),
    "too small": ("grow model out --hidden-size 16", ["hidden_size", "32 to 16"]),
    "nothing to grow": ("grow model out", ["name at least one"]),
    "an output that is not empty": ("grow model packed --hidden-size 64", ["packed", "not empty"]),
    "no such text": ("data pack none.jsonl out --tokenizer model --sequence-length 8", ["none.jsonl"]),
    "no such dataset on a Hub out of reach": (
        "data pack me/none out --tokenizer model --sequence-length 8",
        ["me/none", "dataset", "unset HF_HUB_OFFLINE"],
    ),
    "no such tokenizer": ("data pack train.jsonl out --tokenizer none --sequence-length 8", ["none", "tokenizer"]),
    "no text at all": ("data pack noise.txt out --tokenizer model --sequence-length 8", ["noise.txt", "UTF-8"]),
    "no recipe": ("train none.yaml", ["none.yaml"]),
    "no recipe named": ("train", ["CONFIG.yaml"]),
    "a misspelt key": ("train misspelt.yaml", ["learning_rat", "learning_rate"]),
    "a misspelt option": ("train stage.yaml --learning_rat 1", ["learning_rat", "learning_rate"]),
    "a file of another tool": ("train launch.yaml", ["compute_environment", "known are model_name_or_path", "more"]),
    "a tab in a recipe": ("train tabs.yaml", ["tabs.yaml", "line 4 has a tab; indent with spaces"]),
    "a line that is indented too far": ("train indented.yaml", ["indented.yaml", "line 5", "the indentation"]),
    "a model beyond the memory": ("train huge.yaml", ["Out of memory", "lower per_device_train_batch_size"]),
    "a wrong type": ("train stage.yaml --max_steps many", ["max_steps", "many"]),
    "no such data": ("train stage.yaml --mixture {a:{path:none,weight:1}}", ["none"]),
    "no such checkpoint": ("merge model ./none --output out", ["./none"]),
    "weights that do not sum to 1": ("merge model model2 --output out --weights 1 1", ["sum to 2"]),
    "two ways at once": ("merge model model2 --output out --eval-data held-out.jsonl --method ties", ["--method"]),
    "a public benchmark": ("merge model model2 --output out --eval-data gsm8k.jsonl", ["gsm8k", "worthless"]),
    "weights that are no numbers": ("merge model model2 --output out --weights nan 1", ["nan", "finite"]),
    "one checkpoint only": ("merge model --output out", ["at least two", "model"]),
    "another vocabulary": ("merge model wide --output out", ["vocabularies", "300", "310"]),
    "another dtype": ("merge model short --output out", ["float32", "bfloat16", "one dtype"]),
    "a checkpoint with NaN": ("merge model poisoned --output out", ["model.norm.weight", "poisoned", "NaN"]),
    "a search over a checkpoint with NaN": (
        "merge model poisoned --output out --eval-data held-out.jsonl",
        ["model.norm.weight", "poisoned", "NaN"],
    ),
    "a search over one checkpoint": ("merge model --output out --eval-data held-out.jsonl", ["at least two"]),
    "a search over two vocabularies": ("merge model wide --output out --eval-data held-out.jsonl", ["vocabularies"]),
    "a search over two dtypes": ("merge model short --output out --eval-data held-out.jsonl", ["one dtype"]),
    "a study of another search": (
        "merge model model2 --output out --eval-data held-out.jsonl --storage shared.log --seed 1",
        ["'merge'", "another seed", "(0, now 1)", "choose another"],
    ),
    "a storage that is none": (
        "merge model model2 --output out --eval-data held-out.jsonl --storage nosql:///x",
        ["nosql", "cannot be opened"],
    ),
    "a storage without a search": ("merge model model2 --output out --storage shared.log", ["--storage"]),
    "no such evaluation data": ("merge model model2 --output out --eval-data none.jsonl", ["none.jsonl"]),
    "empty documents": ("merge model model2 --output out --eval-data empty.jsonl", ["0 different", "not empty"]),
    "documents that are numbers": ("merge model model2 --output out --eval-data numbers.jsonl", ["Document 0", "5"]),
    "one document for two splits": (
        "merge model model2 --output out --eval-data one.jsonl",
        ["1 different documents"],
    ),
    "another architecture": ("merge model other --output out", ["other", "architectures"]),
    "a search over two architectures": (
        "merge model other --output out --eval-data held-out.jsonl",
        ["other", "architectures"],
    ),
    "two budgets": (
        "shrink model out --parameters 10K --memory 1MB --calibration stage.yaml --eval-data held-out.jsonl",
        ["one budget", "parameters and memory_bytes"],
    ),
    "a budget below the embedding": (
        "shrink model out --parameters 5K --calibration stage.yaml --eval-data held-out.jsonl",
        ["5,000", "9,600 of the embedding"],
    ),
    "a budget above the source": (
        "shrink model out --parameters 1M --calibration stage.yaml --eval-data held-out.jsonl",
        ["1,000,000", "nothing to shrink"],
    ),
    "a budget without calibration": (
        "shrink model out --parameters 20K --eval-data held-out.jsonl",
        ["--calibration", "importance"],
    ),
    "a budget beside a size": ("shrink model out --parameters 20K --hidden-size 16", ["--hidden-size", "sizes"]),
    "a healing without a budget": ("shrink model out --hidden-size 16 --heal stage.yaml", ["--heal", "budget"]),
    "a healing by no recipe": (f"{TO_A_BUDGET} --heal none.yaml", ["none.yaml"]),
    "a healing where the model goes": (
        f"{TO_A_BUDGET.replace('out', 'run')} --heal stage.yaml",
        ["stage.yaml", "run"],
    ),
    "bits without a format": ("compress model --bits 33 --eval-data held-out.jsonl --output out", ["33", "2 to 8"]),
    "one bit": ("compress model --bits 1 --eval-data held-out.jsonl --output out", ["bits is 1", "2 to 8"]),
    "nothing left": (
        "compress model --sparsities 1.0 --eval-data held-out.jsonl --output out",
        ["sparsity is 1", "no weight is left"],
    ),
    "a model without a base": ("mup explain other", ["--base"]),
    "a rule beside a model's own": ("mup explain model --rule mup", ["--rule"]),
    "no muP model to export": ("mup export other out", ["other"]),
    "no model to push": ("push none me/none", ["none"]),
    "no token": ("push model me/model", ["token"]),
    "a budget too small": ("quickstart --output out --tokens 5", ["5 tokens", "too small"]),
    "an output that is no quickstart": ("quickstart --output packed", ["packed", "not empty"]),
}


@pytest.fixture(scope="module")
def folder(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace with more to go wrong: a twin of the model and bad ones, a misspelt recipe, noise."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp("bad") / "work")
    for twin in ("model2", "poisoned", "huge", "huge2"):
        shutil.copytree(folder / "model", folder / twin)
    poison(folder / "poisoned" / "model.safetensors")
    for twin in ("huge", "huge2"):
        overflow(folder / twin / "model.safetensors")
    shutil.copytree(folder / "model", folder / "finished" / "checkpoint-20")
    make_model().bfloat16().save_pretrained(folder / "short")
    make_model(vocab_size=310).save_pretrained(folder / "wide")
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "other")
    recipe = (folder / "stage.yaml").read_text(encoding="utf-8")
    (folder / "misspelt.yaml").write_text(recipe.replace("learning_rate", "learning_rat"), encoding="utf-8")
    source = "  sayings: {path: packed, weight: 1.0}\n"
    (folder / "tabs.yaml").write_text(recipe.replace(source, source.replace("  ", "\t", 1)), encoding="utf-8")
    (folder / "indented.yaml").write_text(recipe.replace(source, source + "    more: 1\n"), encoding="utf-8")
    (folder / "huge.yaml").write_text(recipe.replace("model_name_or_path: model", HUGE), encoding="utf-8")
    (folder / "numbers.jsonl").write_text('{"text": 5}\n{"text": 6}\n', encoding="utf-8")
    (folder / "one.jsonl").write_text('{"text": "Once."}\n{"text": "Once."}\n', encoding="utf-8")
    (folder / "empty.jsonl").write_text('{"text": ""}\n{"text": " "}\n' * 4, encoding="utf-8")
    (folder / "launch.yaml").write_text("compute_environment: LOCAL_MACHINE\n", encoding="utf-8")
    (folder / "noise.txt").write_bytes(bytes(range(256)) * 8)
    search_merge(
        [folder / "model", folder / "model2"],
        select=[SENTENCES[0]],
        confirm=SENTENCES[1:],
        n_trials=1,
        storage=folder / "shared.log",
    )
    return folder


HUGE = """tokenizer_name_or_path: model
model_config: {model_type: llama, vocab_size: 1000000000000, hidden_size: 64, num_hidden_layers: 1}"""
"""An embedding of 256 TB: no machine even tries."""

AT_THE_SHELL = ("no such model", "a misspelt key", "no such checkpoint", "no token", "a budget too small")
"""One of each group of verbs: what differs at a shell is what is imported."""


@pytest.mark.parametrize("mistake", AT_THE_SHELL)
def test_refused_at_the_shell(mistake: str, folder: Path, tmp_path: Path) -> None:
    command, words = REFUSALS[mistake]
    before = files_below(folder)
    done = warmscale(*command.split(), cwd=folder, HF_HOME=str(tmp_path), HF_TOKEN="")
    assert_refused(done, *words)
    assert files_below(folder) == before


@pytest.mark.parametrize("mistake", sorted(REFUSALS.keys() - set(AT_THE_SHELL)))
def test_refused(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, words = REFUSALS[mistake]
    monkeypatch.chdir(folder)
    before = files_below(folder)
    code = main(command.split())
    assert_sentence(code, capsys.readouterr(), *words)
    assert files_below(folder) == before


def test_a_search_without_a_finite_loss_says_it_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed trial is a warning only where another has a loss."""
    monkeypatch.chdir(folder)
    before = files_below(folder)
    code = main(["merge", "huge", "huge2", "--output", "out", "--eval-data", "held-out.jsonl"])
    assert_sentence(code, capsys.readouterr(), "No merge has a finite loss", "NLL of nan")
    assert files_below(folder) == before


# ---- Weights ----


def truncate(weights: Path) -> None:
    """Cut the last bytes off, as an interrupted copy does."""
    weights.write_bytes(weights.read_bytes()[:-100])


def poison(weights: Path) -> None:
    """Put one NaN into one weight."""
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})


def overflow(weights: Path) -> None:
    """Make the last norm so large that no logit is finite."""
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, weights, metadata={"format": "pt"})


def reshape(weights: Path) -> None:
    """Give one weight a shape that is not the config's."""
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:5].clone()
    save_file(tensors, weights, metadata={"format": "pt"})


def remove(weights: Path) -> None:
    """Forget to copy the weights."""
    weights.unlink()


@pytest.mark.parametrize(
    "damage, word",
    [(truncate, "model"), (poison, "model.norm.weight"), (reshape, "model.norm.weight"), (remove, "weights")],
)
def test_damaged_weights_are_refused(
    damage: Callable[[Path], None],
    word: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    damage(tmp_path / "model" / "model.safetensors")
    before = files_below(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = main(["grow", "model", "out", "--hidden-size", "64"])
    assert_sentence(code, capsys.readouterr(), word)
    assert files_below(tmp_path) == before


# ---- Disk ----


def test_a_full_disk_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: the system refuses the write in the same way."""
    shutil.copytree(workspace / "model", tmp_path / "model")
    before = files_below(tmp_path)
    typed = " ".join([*COMMAND, "grow model out --hidden-size 128"])
    done = subprocess.run(["bash", "-c", f"ulimit -f 64; {typed}"], cwd=tmp_path, capture_output=True, text=True)
    assert_refused(done, "no room left", "out")
    assert files_below(tmp_path) == before
