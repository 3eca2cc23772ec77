"""`warmscale generate`: the text, the table of losses, what is saved, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig

from hf_warmscale import EmulatedFineTuningForCausalLM
from hf_warmscale.checkpoints import save_model
from hf_warmscale.cli import main
from hf_warmscale.decoding import EmulatedFineTuningConfig
from tests.cli.shell import assert_sentence, files_below, warmscale
from tests.cli.workspace import make_tokenizer
from tests.decoding.tiny import tiny
from tests.hub.tiny import tiny_tokenizer

MEMBERS = "large --tuned tuned --reference small"
GENERATE = f"generate {MEMBERS} --prompt Brevity --max-new-tokens 6"


@pytest.fixture(scope="module")
def folder(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a large base, a small base and a small tuned model."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp("generate") / "work")
    for name, width, seed in (("large", 32, 0), ("small", 16, 1), ("tuned", 16, 2)):
        model = tiny(width=width, seed=seed, dtype=torch.float32)
        model.resize_token_embeddings(300)
        save_model(model, folder / name, tokenizer=make_tokenizer())
    save_model(model, folder / "foreign", tokenizer=tiny_tokenizer())
    shutil.copytree(folder / "tuned", folder / "chatty")
    chatty = make_tokenizer()
    chatty.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}wit:"
    chatty.save_pretrained(folder / "chatty")
    shutil.copytree(folder / "tuned", folder / "swapped")
    weights = folder / "swapped" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: -tensor for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    shutil.copytree(folder / "tuned", folder / "diverged")
    diverged = {**tensors, "model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.nan)}
    save_file(diverged, folder / "diverged" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder / "tuned", folder / "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes(b"no header")
    BertConfig().save_pretrained(folder / "encoder")
    EmulatedFineTuningConfig().save_pretrained(folder / "combined")
    (folder / "numbers.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    return folder


def test_the_text_at_the_shell(folder: Path) -> None:
    done = warmscale(*GENERATE.split(), cwd=folder)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    large, tuned, small = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("large", "tuned", "small"))
    prompt = tokenizer("Brevity", return_tensors="pt")
    expected = EmulatedFineTuningForCausalLM(large, tuned, small).generate(**prompt, max_new_tokens=6, do_sample=False)
    assert done.stdout == f"{tokenizer.decode(expected[0], skip_special_tokens=True)}\n"


def test_losses_drafts_and_what_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    output = tmp_path / "out"
    command = f"{GENERATE} --speculative --eval-data held-out.jsonl --beta 0.5 --output {output}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("base", "reference", "combined", "block_length", str(output)))
    record = json.loads((output / "generation.json").read_text())
    assert [row["model"] for row in record["evaluation"]] == ["base", "tuned", "reference", "combined"]
    assert [row["block_length"] for row in record["generation"]["block_lengths"]] == [0, 1, 2, 4, 8, 16]
    assert record["generation"]["text"] in printed
    loaded = EmulatedFineTuningForCausalLM.from_pretrained(output)
    assert loaded.config.beta == 0.5
    assert not list(output.rglob("*.safetensors"))


def test_sampling_follows_the_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    printed = []
    for seed in (1, 1, 2):
        assert main([*GENERATE.split(), "--temperature", "2", "--seed", str(seed)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_with_chat_the_tuned_model_alone_sees_its_template(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reference as the base the combination is the tuned model, so it answers as that model does alone."""
    monkeypatch.chdir(folder)
    command = "generate small --tuned chatty --reference small --prompt Brevity --max-new-tokens 6 --chat"
    assert main(command.split()) == 0
    tokenizer, tuned = AutoTokenizer.from_pretrained("chatty"), AutoModelForCausalLM.from_pretrained("chatty")
    prompt = tokenizer("user: Brevity\nwit:", return_tensors="pt")
    answer = tuned.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert capsys.readouterr().out == f"{tokenizer.decode(answer, skip_special_tokens=True)}\n"


def test_no_more_tokens_than_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(f"generate {MEMBERS} --prompt {'Brevity,' * 12} --max-new-tokens 10".split()) == 0
    prompt = len(make_tokenizer()("Brevity," * 12).input_ids)
    assert f"Of 10 new tokens {64 - prompt} fit into the window of the base model." in capsys.readouterr().err


REFUSALS = {
    "nothing to do": (f"generate {MEMBERS}", ["--prompt", "--eval-data"]),
    "no tuned model": ("generate large --prompt x", ["--tuned"]),
    "no reference": ("generate large --tuned tuned --prompt x", ["no reference"]),
    "no such model": ("generate none --tuned tuned --reference small --prompt x", ["none"]),
    "no such text": (f"generate {MEMBERS} --eval-data none.jsonl", ["none.jsonl"]),
    "another language": ("generate large --tuned foreign --reference small --prompt x", ["do not share a vocabulary"]),
    "beta is NaN": (f"{GENERATE} --beta nan", ["beta", "nan"]),
    "too many weights": (f"{GENERATE} --weights 1 2", ["2 numbers", "1 tuned"]),
    "no probability": (f"{GENERATE} --upscale-top-p 2", ["upscale_top_p", "2.0"]),
    "a draft of no length": (f"{GENERATE} --block-length 4", ["--speculative"]),
    "no chat template": (f"{GENERATE} --chat", ["chat template"]),
    "two chat templates": (
        "generate large --tuned chatty tuned --reference small --prompt x --chat",
        ["tuned has another chat template than chatty"],
    ),
    "a chat that drafts": (f"{GENERATE} --chat --speculative", ["cannot draft"]),
    "no such device": (f"{GENERATE} --device cuda:99", ["--device cuda:99", "leave it out"]),
    "no device at all": (f"{GENERATE} --device gpu", ["--device gpu", "leave it out"]),
    "a cold temperature": (f"{GENERATE} --temperature -1", ["--temperature", "-1"]),
    "an output that is not empty": (f"{GENERATE} --output small", ["small", "not empty"]),
    "an encoder": (f"{GENERATE} --reference encoder", ["encoder holds a bert model", "use a decoder"]),
    "damaged weights": (f"{GENERATE} --tuned damaged", ["damaged/model.safetensors", "copy or download it again"]),
    "NaN": (f"{GENERATE} --tuned diverged", ["model.norm.weight of diverged holds NaN"]),
    "a combination as a member": (f"{GENERATE} --reference combined", ["combined is itself a combination"]),
    "documents that are no text": (f"{GENERATE} --eval-data numbers.jsonl", ["numbers.jsonl, line 1 holds 3"]),
    "an endless temperature": (f"{GENERATE} --temperature inf", ["--temperature", "inf"]),
    "a prompt too long": (f"generate {MEMBERS} --prompt {'Brevity,' * 40}", ["takes 64"]),
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_refused(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, words = REFUSALS[mistake]
    monkeypatch.chdir(folder)
    before = files_below(folder)
    code = main(command.split())
    assert_sentence(code, capsys.readouterr(), *words)
    assert files_below(folder) == before
