"""A pushed model arrives in one commit, complete, and loads back to the bit. What must not be sent is refused."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_warmscale.checkpoints import open_checkpoint, write_json
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from hf_warmscale.hub import make_card, push_to_hub
from hf_warmscale.resize.growing.verify import PROBE_TEXT
from tests.hub.client import HubClient
from tests.hub.pushed import leaks
from tests.hub.server import HubServer, Mode, Repository
from tests.hub.test_cards import GROWTH
from tests.hub.tiny import tiny_folder, tiny_tokenizer

NO_REVISION = "FileNotFoundError {} has no revision v2 on the Hub; name one of its branches, tags or commits."


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_round_trip(tmp_path: Path, server: HubServer, client: HubClient, mode: Mode) -> None:
    folder = tiny_folder(tmp_path / "model", max_shard_size="20KB")
    write_json(folder / "growth_receipt.json", {**GROWTH, "source": str(tmp_path / "base")})
    write_json(folder / "trainer_state.json", {"best_model_checkpoint": str(tmp_path)})
    for pickled in ("training_args.bin", "optimizer.pt"):
        torch.save({"step": 1}, folder / pickled)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    repo_id = f"me/{mode}"
    server.mode = mode
    url = client.call("push", folder, repo_id, private=True, commit_message="Grow")
    client.call("load", repo_id, tmp_path / "back")
    server.mode = "lfs"

    repository = server.repositories[repo_id]
    assert url == f"{server.url}/{repo_id}/commit/{repository.branches['main']}"
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "Grow"]
    assert repository.private
    sent = server.files_at(repo_id)
    withheld = {"training_args.bin", "optimizer.pt", "trainer_state.json"}
    assert set(sent) == (set(before) - withheld) | {"README.md", ".gitattributes"}
    assert not [name for name, content in sent.items() if str(tmp_path).encode() in content]
    assert open_checkpoint(tmp_path / "back").content_hash() == open_checkpoint(folder).content_hash()
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == before["tokenizer.json"]
    assert (tmp_path / "back" / "chat_template.jinja").read_bytes() == before["chat_template.jinja"]
    assert ModelCard(sent["README.md"].decode()).data["tags"] == ["hf_warmscale", "model-growth"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_live_model_takes_its_receipt_along(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    url = client.call("push_grown", tiny_folder(tmp_path / "model"), "me/live")
    assert url.startswith(server.url)
    sent = server.files_at("me/live")
    assert {"model.safetensors", "tokenizer.json", "growth_receipt.json"} <= set(sent)
    assert str(tmp_path).encode() not in sent["README.md"] + sent["growth_receipt.json"]
    client.call("load", "me/live", tmp_path / "back")
    assert open_checkpoint(tmp_path / "back").config.num_hidden_layers == 4


def test_a_combination_is_pushed_by_the_names_of_its_members(
    tmp_path: Path, server: HubServer, client: HubClient
) -> None:
    """With an adapter of the Hub, on a base whose revision the adapter names; the card says how to load it."""
    folder = tiny_folder(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.name_or_path = "me/little"
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, revision="v2")
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    for name, content in {"large": folder, "little": folder, "adapter": tmp_path / "adapter"}.items():
        repository = server.repositories[f"me/{name}"] = Repository(private=False)
        repository.commit("v2", name, {path.name: path.read_bytes() for path in content.iterdir() if path.is_file()})
        repository.branches["main"] = repository.branches["v2"] if name != "little" else ""
    assert client.call("combine", "me/large", "me/adapter", "me/both") == "True"
    sent = server.files_at("me/both")
    assert {name for name in sent if name.endswith(".safetensors")} == {"tuned/adapter_model.safetensors"}
    card = sent["README.md"].decode()
    assert list(leaks(sent, tmp_path / "model")) == []
    assert 'from_pretrained("me/both")' in card and "- me/large\n- me/little\n" in card
    assert (
        f"| tuned | `me/little`, with the adapter in `tuned` | {server.repositories['me/little'].branches['v2']} |"
        in card
    )


def test_a_combination_of_local_members_makes_no_repository(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    model = EmulatedFineTuningForCausalLM.from_members(folder, folder, folder)
    with pytest.raises(ValueError, match=f"^The combination names the member {folder}, a folder of this machine"):
        push_to_hub(model, "me/both", token="hf_x")
    with pytest.raises(ValueError, match=r"not pushed by its own method; call hf_warmscale\.push_to_hub"):
        model.push_to_hub("me/both")


def test_a_tokenizer_beside_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has its own tokenizer"):
        push_to_hub(tiny_folder(tmp_path / "model"), "me/none", tokenizer=tiny_tokenizer())


def test_the_same_content_again(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model")
    first = client.call("push", folder, "me/again")
    assert client.call("push", folder, "me/again") == first
    assert len(server.repositories["me/again"].commits) == 2


def test_an_interrupted_push_is_resumed(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    """The weights arrived, the commit did not: the repository stays empty, and the weights are not sent twice."""
    folder = tiny_folder(tmp_path / "model", seed=5)
    uploads = server.uploads
    server.failing_commits = 1
    message = client.call("push", folder, "me/resumed")
    assert message == "OSError The push to me/resumed failed: the Hub refused (The commit failed)."
    assert set(server.files_at("me/resumed")) == {".gitattributes"}
    assert client.call("push", folder, "me/resumed").startswith(server.url)
    assert server.uploads == uploads + 1


def test_a_commit_in_between_is_not_overwritten(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    """What is pushed over was looked at first; somebody else's later commit was not."""
    folder = tiny_folder(tmp_path / "model", seed=6)
    server.rival_commits = 1
    message = client.call("push", folder, "me/raced")
    assert message.startswith("OSError me/raced was changed while it was pushed to; look at what is there now")
    assert set(server.files_at("me/raced")) == {".gitattributes", "notes.txt"}


def test_weights_with_nan_make_no_repository(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert client.call("push", folder, "me/nan").startswith(
        f"ValueError The tensor model.norm.weight of {folder} holds NaN"
    )
    assert "me/nan" not in server.repositories


def test_another_model_is_replaced_only_when_asked(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    old = tiny_folder(tmp_path / "old", seed=1, max_shard_size="20KB")
    new = tiny_folder(tmp_path / "new", seed=2)
    client.call("push", old, "me/replaced")
    message = client.call("push", new, "me/replaced")
    assert message.startswith("ValueError The repository me/replaced is not empty")
    assert client.call("push", new, "me/replaced", overwrite=True).startswith(server.url)
    assert len(server.repositories["me/replaced"].commits) == 3
    assert [name for name in server.files_at("me/replaced") if name.startswith("model")] == ["model.safetensors"]


def test_a_branch(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    client.call("push", tiny_folder(tmp_path / "model"), "me/branched", revision="step-100")
    assert set(server.files_at("me/branched")) == {".gitattributes"}
    assert "model.safetensors" in server.files_at("me/branched", "step-100")


def test_what_the_hub_refuses(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model")
    no_token = client.call("push", folder, "me/refused", token=None)
    assert no_token == "ValueError There is no Hub token to push me/refused with; set HF_TOKEN or run `hf auth login`."
    bad_id = client.call("push", folder, "me/re fused")
    assert bad_id == "ValueError me/re fused is not a possible repository id; use the form organisation/name."
    assert "me/refused" not in server.repositories


def test_a_card_of_ones_own(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    """It is sent as it is, unless it names a path of this machine."""
    folder = tiny_folder(tmp_path / "model")
    (folder / "README.md").write_text(f"# Mine\nTrained in {tmp_path}/run.\n")
    message = client.call("push", folder, "me/own-card")
    assert message.startswith("ValueError") and "names the local path" in message
    assert "me/own-card" not in server.repositories
    (folder / "README.md").write_text("# Mine\n")
    client.call("push", folder, "me/own-card")
    assert server.files_at("me/own-card")["README.md"] == b"# Mine\n"
    make_card(folder).save(folder / "README.md")  # as a verb leaves it: under the folder's name
    client.call("push", folder, "me/made-card")
    assert b'from_pretrained("me/made-card")' in server.files_at("me/made-card")["README.md"]


@pytest.mark.parametrize("content, fault", [("{", "is not a valid JSON file"), ("[]", "is damaged")])
def test_a_damaged_receipt_makes_no_repository(
    tmp_path: Path, server: HubServer, client: HubClient, content: str, fault: str
) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "growth_receipt.json").write_text(content)
    message = client.call("push", folder, "me/damaged")
    assert message.startswith("ValueError") and f"growth_receipt.json {fault}" in message
    assert "me/damaged" not in server.repositories


def test_additional_chat_templates_come_along(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    client.call("push", folder, "me/templates")
    assert client.call("warmscale", "grow", "me/templates", tmp_path / "grown", "--num-hidden-layers", "4") == "0"
    assert (tmp_path / "grown" / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"


def test_the_reader_opens_a_hub_id(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model", max_shard_size="20KB")
    client.call("push", folder, "me/read")
    head = server.repositories["me/read"].branches["main"]
    assert client.call("describe", "me/read") == f"{open_checkpoint(folder).content_hash()} me/read {head}"
    assert client.call("describe", "me/read@main") == client.call("describe", "me/read")
    assert client.call("describe", "me/read@v2") == NO_REVISION.format("me/read")
    assert client.call("describe", "me/read@main", "main").startswith(
        "ValueError me/read@main needs a Hub id before its @"
    )
    assert client.call("describe", "me/read", "v2") == NO_REVISION.format("me/read")


def test_a_hub_id_is_grown_and_measured_on_text(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    folder = tiny_folder(tmp_path / "model")
    client.call("push", folder, "me/small")
    tokens = len(AutoTokenizer.from_pretrained(folder)(PROBE_TEXT).input_ids)
    assert client.call("probe", "me/small") == f"{tokens} me/small"
    assert client.call("probe", "me/small@main") == client.call("probe", "me/small")
    assert client.call("probe", "me/small@v2") == NO_REVISION.format("me/small")


def test_without_a_network(tmp_path: Path, server: HubServer, client: HubClient) -> None:
    """The cache serves what it has; everything else is one sentence."""
    folder = tiny_folder(tmp_path / "model")
    client.call("push", folder, "me/cached")
    online = client.call("describe", "me/cached")
    server.stop()
    try:
        assert client.call("describe", "me/cached") == online
        missing = client.call("describe", "me/missing")
        pushed = client.call("push", folder, "me/cached")
    finally:
        server.start()
    assert missing.startswith("FileNotFoundError me/missing is neither a folder nor in the Hub cache")
    assert len(missing.splitlines()) == 1
    assert pushed.startswith("OSError The push to me/cached failed: the Hub cannot be reached (ConnectError)")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model(tmp_path: Path, missing: str) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        push_to_hub(folder, "me/tiny", token="unused")


def test_a_tokenizer_beyond_the_table(tmp_path: Path) -> None:
    folder, tokenizer = tiny_folder(tmp_path / "model"), tiny_tokenizer()
    tokenizer.add_tokens([f"<new {number}>" for number in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"gives ids up to \d+, but the model has 300 rows"):
        push_to_hub(folder, "me/tiny", token="unused")


def test_pickled_weights(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        push_to_hub(folder, "me/tiny", token="unused")
