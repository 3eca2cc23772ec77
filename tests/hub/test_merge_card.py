"""The card of a merge of models on the Hub names them, their commits and their content."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_warmscale.checkpoints import open_checkpoint
from tests.hub.client import HubClient
from tests.hub.server import HubServer
from tests.hub.tiny import TEXT, tiny_folder

NAMES = ("me/first", "me/second")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, server: HubServer, client: HubClient) -> list[dict[str, Any]]:
    """Two models on the Hub: what the card must say of each."""
    found = []
    for seed, name in enumerate(NAMES, start=1):
        folder = tiny_folder(tmp_path_factory.mktemp("input") / f"checkpoint-{seed}", seed=seed)
        client.call("push", folder, name)
        commit = server.repositories[name].branches["main"]
        found.append(
            {"source": name, "revision": commit, "step": None, "sha256": open_checkpoint(folder).content_hash()}
        )
    return found


def pushed_card(server: HubServer, client: HubClient, folder: Path, repo_id: str) -> tuple[dict[str, Any], str]:
    """Push a folder at the command line; return the metadata and the text of the card that arrives."""
    assert client.call("warmscale", "push", folder, repo_id) == "0"
    card = ModelCard(server.files_at(repo_id)["README.md"].decode())
    return yaml.safe_load(card.content.split("---")[1]), card.text


def test_a_merge_names_its_inputs(
    tmp_path: Path, server: HubServer, client: HubClient, inputs: list[dict[str, Any]]
) -> None:
    """Of a revision the commit is recorded, whatever it was called; a folder of this machine is no base model."""
    local = tiny_folder(tmp_path / "runs" / "checkpoint-3", seed=3)
    out = tmp_path / "out"
    assert client.call("warmscale", "merge", "me/first@main", "me/second", local, "--output", out) == "0"
    data, text = pushed_card(server, client, out, "me/merged")
    assert data["base_model"] == list(NAMES)
    assert data["base_model_relation"] == "merge"
    receipt = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert receipt["inputs"][:2] == inputs
    assert receipt["inputs"][2]["source"] == "./checkpoint-3" and str(tmp_path) not in text
    assert receipt["weights"] == pytest.approx([1 / 3] * 3)
    assert "Merged from `me/first`, `me/second`, `./checkpoint-3` by `linear`" in text


def test_the_card_of_a_search_tells_which_model_it_is(
    tmp_path: Path, server: HubServer, client: HubClient, inputs: list[dict[str, Any]]
) -> None:
    """Two models that were never trained do not merge: the one that is left is the base, and the relation no merge."""
    documents, out = tmp_path / "held-out.jsonl", tmp_path / "out"
    texts = [f"{number} {text}" for number in range(8) for text in TEXT]
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["merge", *NAMES, "--output", out, "--eval-data", documents, "--trials", "1"]
    assert client.call("warmscale", *command) == "0"
    result = json.loads((out / "merge_result.json").read_text())
    assert result["accepted"] is False
    data, text = pushed_card(server, client, out, "me/searched")
    assert data["base_model"] == NAMES[result["best_single"]]
    assert data["base_model_relation"] == "finetune"
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["inputs"] == inputs
    assert "Chosen from `me/first`, `me/second`" in text and "No merge: " in text
