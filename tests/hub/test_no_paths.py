"""Nothing that is pushed, and no config, names a folder of this machine."""

import json
from pathlib import Path

import pytest

from tests.hub.client import HubClient
from tests.hub.pushed import COMMANDS, leaks, local_paths_in_configs, make_models, push
from tests.hub.server import HubServer
from tests.hub.tiny import tiny_folder


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


def test_the_uploads_of_a_trainer_hold_no_path(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    """What `Trainer` sends by itself: the run folder, its card, and the last checkpoint, from which one can resume."""
    here = tmp_path / "work"
    run = here / "runs" / "stage"
    url = client.call("train", tiny_folder(here / "model"), run, "me/trained")
    assert url.startswith(server.url), url
    sent = server.files_at("me/trained")
    assert {"model.safetensors", "README.md", "report.json", "last-checkpoint/stage.json"} <= set(sent)
    assert str(here) in (run / "checkpoint-2" / "trainer_state.json").read_text()
    assert str(here) in (run / "checkpoint-2" / "stage.json").read_text()
    assert json.loads(sent["last-checkpoint/trainer_state.json"])["best_model_checkpoint"] == "./checkpoint-2"
    assert list(leaks(sent, here)) == []
    assert [path.name for path in run.iterdir() if path.name.startswith("_")] == []
