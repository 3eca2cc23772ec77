"""Checkpoints around a model that was really trained, shared by the tests of the search."""

from pathlib import Path

import pytest

from tests.merging.trained import documents, train_checkpoints


@pytest.fixture(scope="session")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four checkpoints as of one run, the oldest first; nobody writes to them."""
    return train_checkpoints(tmp_path_factory.mktemp("trajectory"))


@pytest.fixture(scope="session")
def splits() -> tuple[list[str], list[str]]:
    """Documents to select on, and others to confirm on."""
    texts = documents()
    return texts[::2], texts[1::2]
