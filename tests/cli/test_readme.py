"""The README says nothing that the command line does not understand."""

import ast
import re
import shlex

import pytest

from hf_warmscale.cli.entry import make_parser
from hf_warmscale.training import get_schedule
from tests.test_package import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = re.findall(r"^ {4,}(?:\S.*(?:-m hf_warmscale|bin/warmscale)|warmscale) (.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("command", TYPED)
def test_command_of_the_readme_is_understood(command: str) -> None:
    assert make_parser().parse_args(shlex.split(command)).run is not None


def test_the_readme_has_commands() -> None:
    assert len(TYPED) >= 8


def test_ci_finds_the_test_command() -> None:
    """`.ci/run` takes the line from the README, so that the two cannot drift."""
    lines = [line for line in README.splitlines() if line.endswith("&& .venv/bin/pytest")]
    assert len(lines) == 1
    assert lines[0].strip().startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_the_stage_in_the_readme_can_be_run() -> None:
    """Its phases fit into its steps, and the checkpoints that it merges are of the constant phase."""
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    (stage,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Stage"
    )
    settings, steps = ast.literal_eval(stage.args[1]), ast.literal_eval(stage.keywords[0].value)
    schedule = get_schedule(**settings).resolve(total_steps=steps, learning_rate=3e-4)
    merged = [int(step) for step in re.findall(r"grown/checkpoint-(\d+)", code)]
    assert merged
    assert {schedule(step) for step in merged} == {schedule.plateau}
