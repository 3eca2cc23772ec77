"""`--help` of every verb, in one process that must not load what the verbs need."""

import re
import shlex
import subprocess
import sys

import pytest

from hf_warmscale.cli.entry import VERBS, make_parser
from hf_warmscale.cli.env import FOR_GPU, NOT_INSTALLED, installed
from hf_warmscale.cli.verb import HELP_WIDTH, Verb
from tests.cli.shell import COMMAND


def words(verbs: tuple[Verb, ...], *before: str) -> list[list[str]]:
    """What is typed for every verb, the groups included."""
    return [typed for verb in verbs for typed in ([*before, verb.name], *words(verb.verbs, *before, verb.name))]


def leaves(verbs: tuple[Verb, ...]) -> list[Verb]:
    """The verbs that do something."""
    return [leaf for verb in verbs for leaf in (leaves(verb.verbs) if verb.verbs else [verb])]


TYPED = [[], *words(VERBS)]

EVERY_HELP = f"""
import sys
from hf_warmscale.cli import main
for verb in {TYPED}:
    assert main([*verb, "--help"]) == 0
    heavy = {{"torch", "transformers", "numpy", "datasets", "optuna", "rich", "yaml"}} & set(sys.modules)
    assert not heavy, (verb, heavy)
"""


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: warmscale") == len(TYPED)
    assert done.stdout.count("\nexample:\n  ") == len(leaves(VERBS))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_says_what_it_is_for(verb: Verb) -> None:
    assert verb.summary[0].islower() and not verb.summary.endswith(".")
    assert (verb.run is None) == bool(verb.verbs)
    assert verb.after_interrupt.endswith(".")


def test_every_field_of_a_recipe_has_a_help_text() -> None:
    from hf_warmscale.training.recipe.configuration import make_parser

    actions = make_parser()._actions
    assert [action.dest for action in actions if not action.help] == []
    assert "--max_tokens" in make_parser().format_help()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_verbs_and_options(shell: str) -> None:
    script = subprocess.run([*COMMAND, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert "quickstart" in script and "hidden-size" in script


def test_bash_completes(tmp_path: object) -> None:
    script = subprocess.run([*COMMAND, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    ask = "COMP_WORDS=(warmscale gr) COMP_CWORD=1; _shtab_warmscale warmscale gr warmscale; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
    assert done.stdout.split() == ["grow"], done.stderr


def test_version_is_the_packages() -> None:
    import hf_warmscale

    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"warmscale {hf_warmscale.__version__}\n"


def test_env_names_versions_and_no_path(tmp_path: object) -> None:
    done = subprocess.run([*COMMAND, "env"], capture_output=True, text=True, check=True)
    assert "| transformers | 5." in done.stdout
    assert sys.prefix not in done.stdout and "/" not in done.stdout
    (missing,) = re.findall(r"\| Missing for GPU work \| (.+) \|", done.stdout)
    for package in FOR_GPU:
        assert (package in missing) == (installed(package) == NOT_INSTALLED)
    assert done.stderr == ""


@pytest.mark.parametrize("verb", leaves(VERBS), ids=lambda verb: verb.name)
def test_the_example_in_the_help_is_understood(verb: Verb) -> None:
    assert max(map(len, verb.example.splitlines())) <= HELP_WIDTH
    (typed,) = re.findall(r"warmscale ([^)]+)", verb.example.replace("\\\n", " "))
    arguments = make_parser().parse_args(shlex.split(typed))
    assert arguments.run == verb.run
