"""Send a model to the Hub in one commit."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.hf_api import RepoFile
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from hf_warmscale.checkpoints import (
    find_tokenizer,
    load_config,
    save_model,
    shared_ids,
)
from hf_warmscale.checkpoints.files import SMALL_FILES
from hf_warmscale.checkpoints.hub_errors import explained_writing
from hf_warmscale.checkpoints.loading import require_weights
from hf_warmscale.checkpoints.portable import content_to_publish
from hf_warmscale.compression.budget.receipt import BudgetSearchReceipt
from hf_warmscale.decoding.receipt import CombinationReceipt
from hf_warmscale.decoding.receipt import card as combination_card
from hf_warmscale.decoding.saving import files_to_publish
from hf_warmscale.hub.cards import make_card, read_receipts
from hf_warmscale.resize import GrowthReceipt, ShrinkReceipt

CARD = "README.md"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")
SENT = (*SMALL_FILES, f"{CHAT_TEMPLATE_DIR}/*.jinja", "*.jsonl", "*.png", "LICENSE*")
"""What is sent beside weights and card. Nothing pickled, no optimizer, no hidden file."""

WITHHELD = ("trainer_state.json",)


def push_to_hub(
    model: str | os.PathLike[str] | PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    overwrite: bool = False,
) -> str:
    """Send weights, tokenizer, receipts and card of a model in one commit; return the commit's URL.

    An interrupted push can be repeated: files that arrived are not sent again, and the repository is either empty or
    complete. Pushing the same content twice makes no second commit.

    Args:
        model (`str`, `PathLike` or `PreTrainedModel`): a model folder with safetensors weights, such as a growth, a
            merge or a stage writes; or a live model, with the receipts that growing and shrinking left on it. A
            combination has no weights; its members must be models of the Hub.
        repo_id (`str`): `name` or `organisation/name`; made if it does not exist.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of a live model; a folder has its own.
        private (`bool`): make a new repository private.
        token (`str`, *optional*): by default `HF_TOKEN` or what `hf auth login` stored.
        revision (`str`, *optional*): a branch, made if it does not exist.
        commit_message (`str`): the first line of the commit.
        overwrite (`bool`): replace the model of a repository that holds something else.

    Raises:
        FileNotFoundError: if the folder is not a model folder.
        ValueError: if there is no token, a tokenizer is given for a folder, the repository holds something else, the
            weights are pickled, corrupt or hold NaN, the tokenizer gives ids beyond the model's table, a member of a
            combination is a local folder, or the folder's own `README.md` names a local path. All but the third are
            checked before a repository is made.
        OSError: if the Hub cannot be reached or refuses.

    Example:
        >>> push_to_hub("merged", "me/merged", private=True)
        '.../me/merged/commit/3f2a...'
        >>> grown = grow_from_pretrained("me/small", hidden_size=1152, num_attention_heads=18)
        >>> push_to_hub(grown, "me/grown", tokenizer=tokenizer)
        '.../me/grown/commit/81bd...'
    """
    push = partial(
        _push,
        repo_id=repo_id,
        private=private,
        token=token,
        revision=revision,
        commit_message=commit_message,
        overwrite=overwrite,
    )
    if isinstance(model, PreTrainedModel):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(model, folder, tokenizer=tokenizer, receipts=live_receipts(model))
            return push(folder)
    if tokenizer is not None:
        raise ValueError(
            f"{model} is a folder and has its own tokenizer; leave tokenizer out, or give the live model."
        )
    return push(Path(model))


def live_receipts(model: PreTrainedModel) -> dict[str, Mapping[str, Any]]:
    """Return what growing, shrinking and a budget search left on a live model, by file name."""
    files = {kind.attribute: kind.file_name for kind in (GrowthReceipt, ShrinkReceipt, BudgetSearchReceipt)}
    return {file: vars(model)[attribute] for attribute, file in files.items() if attribute in vars(model)}


def _push(
    folder: Path,
    *,
    repo_id: str,
    private: bool,
    token: str | None,
    revision: str | None,
    commit_message: str,
    overwrite: bool,
) -> str:
    files = _files(folder)
    token = token or get_token()
    if not token:
        raise ValueError(f"There is no Hub token to push {repo_id} with; set HF_TOKEN or run `hf auth login`.")
    _check_texts(folder, files, repo_id)
    api = HfApi(token=token)
    with explained_writing(repo_id, token):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        parent, there = _content(api, repo_id, revision)
        additions = list(_additions(folder, files, repo_id))
        foreign = _foreign(there, additions)
        if foreign and not overwrite:
            raise ValueError(
                f"The repository {repo_id} is not empty ({foreign[0]} differs or is not in {folder}); name another"
                " one, or push with overwrite."
            )
        # Old shards would be loaded beside, or instead of, the new weights.
        stale = [path for path in foreign if path.endswith(WEIGHT_SUFFIXES) and path not in files]
        commit = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=commit_message,
            revision=revision,
            parent_commit=parent,
        )
    return str(commit.commit_url)


def _files(folder: Path) -> list[str]:
    """Return what is sent, relative to the folder, after checking that it is a model."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to push.")
    combined = (folder / CombinationReceipt.file_name).is_file()
    weights = files_to_publish(folder) if combined else require_weights(folder).files
    _check_tokenizer(folder)
    beside = (path for pattern in SENT for path in folder.glob(pattern) if path.is_file())
    found = [*weights, *(path for path in beside if not path.name.startswith("."))]
    return sorted({str(path.relative_to(folder)) for path in found} - {CARD, *WITHHELD})


def _check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that gives ids which the model has no row for: whoever loads both gets an index error."""
    rows = getattr(load_config(folder).get_text_config(), "vocab_size", None)
    if rows is not None:
        shared_ids({str(folder): rows}, {str(folder): find_tokenizer(folder)})


def _check_texts(folder: Path, files: list[str], repo_id: str) -> None:
    """Refuse receipts and cards that cannot be sent before a repository is made for them."""
    for file in files:
        content_to_publish(folder / file)
    _card(folder, repo_id)


def _additions(folder: Path, files: list[str], repo_id: str) -> Iterator[CommitOperationAdd]:
    for file in files:
        yield CommitOperationAdd(file, content_to_publish(folder / file))
    yield CommitOperationAdd(CARD, _card(folder, repo_id).encode())


def _card(folder: Path, repo_id: str) -> str:
    """Return the folder's own card; one for `repo_id` if there is none, or if it was made and nobody edited it."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    for receipt in read_receipts(folder):
        if isinstance(receipt, CombinationReceipt) and text == combination_card(receipt):
            return combination_card(receipt, repo_id)
    if text is None or text.split() == str(make_card(folder)).split():
        return str(make_card(folder, repo_id=repo_id))
    for place in (folder.resolve().parent, Path.home(), Path.cwd(), Path(tempfile.gettempdir())):
        if place != Path(place.anchor) and re.search(rf"(?<![\w/.:-]){re.escape(str(place))}(?![\w-])", text):
            raise ValueError(f"{path} names the local path {place}; remove it before the push.")
    return text


def _content(api: HfApi, repo_id: str, revision: str | None) -> tuple[str | None, dict[str, str]]:
    """Return the head commit of a repository and the hash of each of its files."""
    head = api.model_info(repo_id, revision=revision).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
    files = [entry for entry in tree if isinstance(entry, RepoFile) and entry.path != ".gitattributes"]
    return head, {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _foreign(there: dict[str, str], operations: list[CommitOperationAdd]) -> list[str]:
    """Return the files of a repository that the push would not leave as they are."""
    ours = {operation.path_in_repo: operation for operation in operations}
    return sorted(path for path, digest in there.items() if path not in ours or not _is(ours[path], digest))


def _is(operation: CommitOperationAdd, digest: str) -> bool:
    """Tell whether a file has a digest of the Hub: the SHA-256 of a large file, the git hash of a small one."""
    if len(digest) == len(hashlib.sha256().hexdigest()):
        return operation.upload_info.sha256.hex() == digest
    with operation.as_file() as file:
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
