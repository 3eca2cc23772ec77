"""The seven steps of the README, typed one after the other, on models of its sizes with one block."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_warmscale.cli import main
from hf_warmscale.cli.average import AVERAGE
from hf_warmscale.cli.compress import COMPRESS
from hf_warmscale.cli.data import EXTEND, PACK
from hf_warmscale.cli.generate import GENERATE
from hf_warmscale.cli.grow import GROW
from hf_warmscale.cli.merge import MERGE
from hf_warmscale.cli.mup.explain import EXPLAIN
from hf_warmscale.cli.push import PUSH
from hf_warmscale.cli.scaling.plan import PLAN
from hf_warmscale.cli.shrink import SHRINK
from hf_warmscale.cli.verb import Verb
from tests.cli.shell import warmscale
from tests.cli.test_readme import README
from tests.cli.workspace import VOCAB, documents, make_tokenizer
from tests.hub.server import TOKEN, hub_server

STEPS = README[README.index("## Seven steps") : README.index("## In Python")]
COMMANDS = re.findall(r"^ +warmscale (.+)$", STEPS, re.MULTILINE)
MORE = [verb.example.removeprefix("warmscale ") for verb in (AVERAGE, EXPLAIN, EXTEND)]
"""Examples of `--help` on the same models; those of the verbs of the README are its own commands."""
SMALLER = {
    "--sequence-length 1024": "--sequence-length 32",
    "max_steps: 10000": "max_steps: 10",
    "save_steps: 500": "save_steps: 1",
    "checkpoint-8000": "checkpoint-7",
    "checkpoint-8500": "checkpoint-8",
    "checkpoint-10000": "checkpoint-10",
    "--parameters 300M": "--parameters 10M --trials 5",
    '--prompt "The growth of"': '--prompt "The growth of" --max-new-tokens 4',
}
"""How the walk differs from what the README says: in the length of the run, and in the budget of the one block."""


def smaller(text: str) -> str:
    for typed, less in SMALLER.items():
        text = text.replace(typed, less)
    return text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes as given."""
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    for seed, name in enumerate(("HuggingFaceTB/SmolLM2-135M", "me/small-tuned")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    lines = [json.dumps({"text": text}) for text in documents(60)]
    for start, name in enumerate(("new", "old", "held-out")):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[20 * start : 20 * start + 20]) + "\n")
    (yaml,) = re.findall(r"```yaml\n(.+?)```", STEPS, re.DOTALL)
    (tmp_path / "continue.yaml").write_text(smaller("\n".join(line[3:] for line in yaml.splitlines())))
    return tmp_path


@pytest.mark.slow
def test_the_seven_steps_run_as_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *steps, push = COMMANDS
    for command in [*steps, *MORE]:
        assert main(shlex.split(smaller(command))) == 0, (command, capsys.readouterr().err)
    with hub_server() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        pushed = warmscale(*shlex.split(push), cwd=here, HF_HOME=str(here / "home"), **environment)
    assert pushed.returncode == 0, pushed.stderr


@pytest.mark.parametrize(
    "verb", [GROW, SHRINK, MERGE, COMPRESS, GENERATE, PACK, PLAN, PUSH], ids=lambda verb: verb.name
)
def test_the_example_in_the_help_is_the_command_of_the_readme(verb: Verb) -> None:
    _, *typed = shlex.split(verb.example.replace("\\\n", " "))
    assert typed in [shlex.split(command) for command in COMMANDS]
