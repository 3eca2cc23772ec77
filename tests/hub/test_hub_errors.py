"""What the Hub refuses, whichever verb asked: one sentence with the name and the remedy, exit code 2, nothing written.

Every command is typed against a Hub on this machine; no answer of it is made up in the process that asks.
"""

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.shell import assert_sentence, files_below
from tests.cli.workspace import make_workspace
from tests.contract.inputs import FOLDERS
from tests.hub.client import HubClient
from tests.hub.server import READ_TOKEN, TOKEN, HubServer, Repository

MODEL_READERS = (
    "grow ID out --num-hidden-layers 4",
    "shrink ID out --parameters 20K --calibration train.jsonl --eval-data held-out.jsonl",
    "train stage.yaml --model_name_or_path ID --output_dir out",
    "merge model ID --output out --eval-data held-out.jsonl",
    "generate ID --tuned model --reference model --prompt hi",
    "generate model --tuned ID --reference model --prompt hi",
    "compress ID --eval-data held-out.jsonl --output out",
    "mup explain ID",
    "mup export ID out",
    "data pack train.jsonl out --tokenizer ID --sequence-length 8",
    "data extend train.jsonl out --model ID --new-tokens 4",
    "scaling plan --target ID --tokens 1M --output out",
)
WEIGHT_READERS = tuple(command for command in MODEL_READERS if command.split()[0] in ("grow", "train", "merge"))
DATASET_READERS = (
    "data pack ID out --tokenizer model --sequence-length 8",
    "data extend ID out --model model --new-tokens 4",
    "merge model model2 --output out --eval-data ID",
    "train stage.yaml --output_dir out --mixture '{a: {stream: ID, num_rows: 4, sequence_length: 8, weight: 1}}'",
)
WRITERS = (
    "push model ID",
    "train stage.yaml --output_dir out --push_to_hub true --hub_model_id ID",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a twin of it, text and a recipe."""
    folder = make_workspace(tmp_path_factory.mktemp("asking"))
    shutil.copytree(folder / "model", folder / "model2")
    return folder


@pytest.fixture(scope="module", autouse=True)
def repositories(folder: Path, server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is on the Hub: two models, one of them gated, broken ones, and a dataset."""
    for name in ("me/gated", "me/open", "me/pictures", "theirs/model"):
        server.repositories[name] = Repository(private=False, gated=name == "me/gated")
        server.repositories[name].commit("main", "initial commit", {".gitattributes": b""})
    server.repositories["me/pictures"].commit("main", "of diffusers", {"model_index.json": b"{}"})
    for kind in ("adapter folder", "truncated weights"):
        broken = shutil.copytree(folder / "model", tmp_path_factory.mktemp("broken") / "model")
        FOLDERS[kind](broken)
        server.repositories[f"me/{kind.split()[0]}"] = repository = Repository(private=False)
        repository.commit("main", "broken", files_below(broken))
    server.datasets.add("me/words")


@contextlib.contextmanager
def answering(server: HubServer, status: int) -> Iterator[None]:
    """Let the Hub answer everything with one status."""
    server.status = status
    try:
        yield
    finally:
        server.status = None


@contextlib.contextmanager
def stopped(server: HubServer) -> Iterator[None]:
    """Take the Hub off the network."""
    server.stop()
    try:
        yield
    finally:
        server.start()


State = Callable[[HubServer], contextlib.AbstractContextManager[None]]
REFUSALS: dict[str, tuple[tuple[str, ...], str, str | None, State | None, list[str]]] = {
    "gated, not logged in": (MODEL_READERS, "me/gated", None, None, ["is gated", "/me/gated", "`hf auth login`"]),
    "gated, not accepted": (MODEL_READERS, "me/gated", TOKEN, None, ["is gated", "accept its terms"]),
    "no such model": (MODEL_READERS, "me/none", TOKEN, None, ["check the name"]),
    "a dataset for a model": (MODEL_READERS, "me/words", TOKEN, None, ["is a dataset", "name a model"]),
    "no causal language model": (MODEL_READERS, "me/pictures", TOKEN, None, ["holds no", "name"]),
    "an adapter for a model": (WEIGHT_READERS, "me/adapter", TOKEN, None, ["Error: me/adapter has", "an adapter"]),
    "a damaged model": (WEIGHT_READERS, "me/truncated@main", TOKEN, None, ["Error: me/truncated@main/model"]),
    "no such revision": (MODEL_READERS, "me/open@v9", TOKEN, None, ["no revision v9", "branches, tags"]),
    "a token that expired": (MODEL_READERS, "me/open", "hf_old", None, ["valid token", "`hf auth login`"]),
    "a token in typographic quotes": (MODEL_READERS, "me/open", "“hf_old”", None, ["token", "copy it again"]),
    "a Hub out of order": (MODEL_READERS, "me/open", TOKEN, lambda hub: answering(hub, 500), ["500", "later"]),
    "too many requests": (MODEL_READERS, "me/open", TOKEN, lambda hub: answering(hub, 429), ["429", "wait"]),
    "no Hub": (MODEL_READERS, "me/open", TOKEN, stopped, ["check the name and the network"]),
    "no such dataset": (DATASET_READERS, "me/none", TOKEN, None, ["dataset", "check the name"]),
    "a model for a dataset": (DATASET_READERS, "me/open", TOKEN, None, ["is a model", "name a dataset"]),
    "a push, not logged in": (WRITERS, "me/new", None, None, ["token", "`hf auth login`"]),
    "a push, a token that expired": (WRITERS, "me/new", "hf_old", None, ["me/new", "valid token"]),
    "a push, a token that only reads": (WRITERS, "me/new", READ_TOKEN, None, ["may only read", "settings/tokens"]),
    "a push to others": (WRITERS, "theirs/new", TOKEN, None, ["may not write to theirs/new", "of your own"]),
    "a push into a model of others": (WRITERS[:1], "theirs/model", TOKEN, None, ["may not write to theirs/model"]),
    "a push over another model": (WRITERS[:1], "me/pictures", TOKEN, None, ["me/pictures is not empty", "overwrite"]),
    "a push, a Hub out of order": (WRITERS, "me/new", TOKEN, lambda hub: answering(hub, 500), ["me/new", "later"]),
    "a push, too many requests": (WRITERS, "me/new", TOKEN, lambda hub: answering(hub, 429), ["429", "wait"]),
    "a push, no Hub": (WRITERS, "me/new", TOKEN, stopped, ["cannot be reached", "push again"]),
}  # fmt: skip
"""Who asks, for what, with which token, in which state of the Hub, and what the sentence says beside the id."""


@pytest.mark.parametrize("mistake", REFUSALS)
def test_refused(mistake: str, folder: Path, server: HubServer, client: HubClient) -> None:
    commands, repo_id, token, state, words = REFUSALS[mistake]
    before, there = files_below(folder), set(server.repositories)
    with state(server) if state else contextlib.nullcontext():
        for command in commands:
            typed = command.replace("ID", repo_id)
            code, _, printed = client.call("typed", typed, folder, token=token).partition("\n")
            assert code == "2", (typed, code, printed)
            assert_sentence(2, ("", printed), *([] if "@" in repo_id else [repo_id]), *words)
            assert token is None or token not in printed
            assert "models--" not in printed, "the folder in the cache is nothing that the user typed"
    assert files_below(folder) == before
    assert set(server.repositories) == there


@contextlib.contextmanager
def silent(server: HubServer) -> Iterator[None]:
    """Take connections, and never answer."""
    with stopped(server), socket.create_server(("127.0.0.1", server.port), backlog=100):
        yield


def test_a_hub_that_does_not_answer(folder: Path, server: HubServer, client: HubClient) -> None:
    """One command of each kind; all of a kind ask within the same block of the code."""
    before = files_below(folder)
    with silent(server):
        for command in (
            MODEL_READERS[0],
            DATASET_READERS[0],
            WRITERS[0],
        ):
            typed = command.replace("ID", "me/open")
            code, _, printed = client.call("typed", typed, folder, patience=0.1).partition("\n")
            assert code == "2", (typed, code, printed)
            assert_sentence(2, ("", printed), "me/open", "did not answer in time", "try again")
    assert files_below(folder) == before
