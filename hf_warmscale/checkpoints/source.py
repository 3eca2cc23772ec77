"""Find the folder and the weight files of a model that a user names: a folder, or a Hub id with a revision."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from hf_warmscale.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CHAT_TEMPLATES,
    CONFIG_FILE,
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX_FILE,
    SINGLE_FILE,
    SMALL_FILES,
    folder_kind,
)
from hf_warmscale.checkpoints.hub_errors import Kind, explained_reading
from hf_warmscale.checkpoints.receipts import public_name
from hf_warmscale.compat.huggingface_hub import optional_files
from hf_warmscale.refusals import remember_name


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found.

    Args:
        name (`str`): as the user wrote it.
        folder (`Path`): where its files are.
        repo_id (`str` or `None`): its id on the Hub, `None` for a folder.
        revision (`str` or `None`): its commit on the Hub, `None` for a folder.
    """

    name: str
    folder: Path
    repo_id: str | None = None
    revision: str | None = None

    @property
    def identity(self) -> str:
        """Its name in a receipt: the Hub id, or `./` and the name of the folder."""
        return self.repo_id or public_name(self.folder)


def find_source(source: str | os.PathLike[str], *, revision: str | None = None, allow_pickle: bool = False) -> Source:
    """Return the folder of `source`; a Hub id is found in the Hub cache or downloaded into it.

    Args:
        source (`str` or `PathLike`): a folder, a Hub id, or a Hub id with a revision, `id@revision`.
        revision (`str`, *optional*): a branch, a tag or a commit of the Hub id.
        allow_pickle (`bool`): download pickled weights if there are no others.

    Raises:
        FileNotFoundError: if there is no such folder or model, or it is not in the cache and there is no network.
        OSError: if the Hub refuses; see `hub_errors`.
        ValueError: if `source` is a file or not a possible name, or if a folder is named with a revision.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder and has no revision {revision}; leave the revision out.")
        return Source(name, path)
    if path.exists():
        raise ValueError(f"{name} is a file; name the folder that holds it.")
    repo_id, revision = hub_name(source, revision)
    with explained_reading(repo_id, revision), optional_files():
        folder = _fetch_small_files(repo_id, revision)
        remember_name(folder, name)
        _refuse_no_model(repo_id, folder, (CONFIG_FILE, ADAPTER_CONFIG))
        adapter = [ADAPTER_FILE] if (folder / ADAPTER_CONFIG).is_file() else []
        files = [*adapter, *_weights_to_fetch(folder, allow_pickle)]
        # A snapshot folder is named after its commit. Asking for that commit keeps config and weights together even
        # if the branch moves between the two downloads.
        folder = Path(snapshot_download(repo_id, revision=folder.name, allow_patterns=files))
    return Source(name, folder, repo_id=repo_id, revision=folder.name)


def fetch_subfolders(source: Source, names: Iterable[str]) -> None:
    """Download subfolders of a Hub id, which `find_source` leaves out, into the folder of its commit.

    Raises:
        FileNotFoundError: if they are not in the cache and there is no network.
        OSError: if the Hub refuses; see `hub_errors`.
    """
    patterns = [f"{name}/*" for name in names]
    if source.repo_id is not None and patterns:
        with explained_reading(source.repo_id, source.revision):
            snapshot_download(source.repo_id, revision=source.revision, allow_patterns=patterns)


def find_config(source: str | os.PathLike[str], *, kind: Kind = "model") -> Path:
    """Return the folder, or the JSON file, that holds the config of a model; no weights are downloaded.

    Args:
        source (`str` or `PathLike`): a folder, a JSON file, a Hub id, or a Hub id with a revision, `id@revision`.
        kind (`str`): what it is called if it cannot be had: `"model"` or `"tokenizer"`.

    Raises:
        FileNotFoundError: if there is no such model, or it is not in the cache and there is no network.
        OSError: if the Hub refuses; see `hub_errors`.
        ValueError: if `source` is not a possible name.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    repo_id, revision = hub_name(source)
    with explained_reading(repo_id, revision, kind=kind), optional_files():
        folder = _fetch_small_files(repo_id, revision)
    remember_name(folder, os.fspath(source))
    if kind == "model":
        _refuse_no_model(repo_id, folder, (CONFIG_FILE,))
    return folder


def hub_name(source: str | os.PathLike[str], revision: str | None = None) -> tuple[str, str | None]:
    """Take a Hub id and its revision apart.

    Args:
        source (`str` or `PathLike`): `id` or `id@revision`; nothing of that name exists here.
        revision (`str`, *optional*): a revision that was named apart.

    Raises:
        FileNotFoundError: if it can only be a path.
        ValueError: if there is no id before the @, no revision after it, or a second one.

    Example:
        >>> hub_name("EleutherAI/pythia-410m@step1000")
        ('EleutherAI/pythia-410m', 'step1000')
    """
    name = os.fspath(source)
    repo_id, at, typed = name.partition("@")
    is_path = isinstance(source, os.PathLike) or Path(name).is_absolute() or name.startswith((".", "~"))
    if is_path or repo_id.count("/") > 1:
        raise FileNotFoundError(f"There is no folder {name}; name a checkpoint folder or a Hub id.")
    if at and (revision is not None or not typed or not repo_id):
        raise ValueError(f"{name} needs a Hub id before its @ and one revision after it; write id@revision.")
    return repo_id, typed or revision


def _fetch_small_files(repo_id: str, revision: str | None) -> Path:
    """Return the snapshot folder of a Hub id, with everything but the weights."""
    folder = snapshot_download(repo_id, revision=revision, allow_patterns=[*SMALL_FILES], ignore_patterns="*/*")
    # The one folder that belongs to a model. Patterns cannot exempt it: its files match `*/*` too.
    snapshot_download(repo_id, revision=revision, allow_patterns=CHAT_TEMPLATES)
    return Path(folder)


def _refuse_no_model(repo_id: str, folder: Path, files: tuple[str, ...]) -> None:
    """Refuse a repository that holds something else, under its own name and not that of its folder in the cache."""
    if not any((folder / file).is_file() for file in files):
        raise FileNotFoundError(
            f"{repo_id} has no {CONFIG_FILE}, so it holds no model of transformers; name the repository of one."
        )


def _weights_to_fetch(folder: Path, allow_pickle: bool) -> list[str]:
    for index, single in ((INDEX_FILE, SINGLE_FILE), (PICKLED_INDEX_FILE, PICKLED_FILE)):
        if (folder / index).is_file():
            return sorted(set(read_index(folder / index).values()))
        if single == SINGLE_FILE and not allow_pickle:
            return [SINGLE_FILE]
    return [SINGLE_FILE, PICKLED_FILE]


def weight_files(folder: Path, *, allow_pickle: bool = False) -> dict[Path, list[str] | None]:
    """Return the weight files of a folder, each with the names its index promises (`None` without an index).

    Safetensors win over pickles, as in transformers.

    Raises:
        FileNotFoundError: if there are no weights, or a shard of the index is missing.
        ValueError: if there is both a single file and an index, if there are only pickled weights and `allow_pickle`
            is off, or if the index is corrupt.
    """
    if (folder / SINGLE_FILE).is_file():
        if (folder / INDEX_FILE).is_file() and SINGLE_FILE not in read_index(folder / INDEX_FILE).values():
            raise ValueError(
                f"{folder} holds two sets of weights, {SINGLE_FILE} and the files of {INDEX_FILE}; remove one of them."
            )
        return {folder / SINGLE_FILE: None}
    if (folder / INDEX_FILE).is_file():
        return _indexed(folder / INDEX_FILE)
    pickled = [folder / name for name in (PICKLED_FILE, PICKLED_INDEX_FILE) if (folder / name).is_file()]
    if not pickled:
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; {folder_kind(folder)}.")
        raise FileNotFoundError(f"{folder} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there.")
    if not allow_pickle:
        raise ValueError(
            f"{folder} holds only pickled weights ({pickled[0].name}), which can run code when opened;"
            " convert them to safetensors: load it in transformers and save_pretrained it elsewhere."
        )
    return {pickled[0]: None} if pickled[0].name == PICKLED_FILE else _indexed(pickled[0])


def _indexed(index: Path) -> dict[Path, list[str] | None]:
    names: dict[Path, list[str] | None] = {}
    for name, file in sorted(read_index(index).items(), key=lambda item: item[1]):
        path = index.parent / file
        promised = names.setdefault(path, [])
        assert promised is not None
        promised.append(name)
    missing = [path.name for path in names if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{index.parent} lacks the shard {missing[0]} that {index.name} names; copy it again.")
    return names


def read_index(path: Path) -> dict[str, str]:
    """Return the `weight_map` of an index file: tensor name to file name.

    Raises:
        ValueError: if the file is not an index, or if it names a file outside its folder.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, str] = dict(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the index of a sharded checkpoint; copy or download it again.") from error
    for file in files.values():
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
            raise ValueError(f"{path} names {file!r}, which is not a file of its folder.")
    return files
