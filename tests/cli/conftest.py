"""One workspace for all tests of the command line, which must leave it as it is."""

from pathlib import Path

import pytest

from tests.cli.workspace import make_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, text, packed rows and a recipe; copy it before writing."""
    return make_workspace(tmp_path_factory.mktemp("workspace"))
