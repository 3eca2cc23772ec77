"""The README says nothing that the command line does not understand."""

import re
import shlex

import pytest

from hf_warmscale.cli.entry import make_parser
from tests.test_package import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = re.findall(r"^    (?:\S.*(?:-m hf_warmscale|bin/warmscale)|warmscale) (.+)$", README, re.MULTILINE)


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
