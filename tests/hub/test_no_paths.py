"""Nothing that is pushed, and no config, names a folder of this machine."""

from pathlib import Path

import pytest

from tests.hub.client import HubClient
from tests.hub.pushed import COMMANDS, leaks, local_paths_in_configs, make_models, push
from tests.hub.server import HubServer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("models") / "work"
    make_models(here)
    return here


@pytest.mark.parametrize("kind", COMMANDS)
def test_no_path_is_pushed(kind: str, models: Path, server: HubServer, client: HubClient) -> None:
    assert list(leaks(push(models, kind, server, client), models)) == []


def test_no_config_holds_a_path(models: Path) -> None:
    assert local_paths_in_configs(models) == []


def test_a_path_would_be_seen(tmp_path: Path) -> None:
    files = {
        "config.json": b'{"growth": {"source": "/data/runs/base"}}',
        "README.md": b"see https://a.example/b/c or org/model",
    }
    assert list(leaks(files, tmp_path / "work")) == ["config.json: /data/runs/base"]
