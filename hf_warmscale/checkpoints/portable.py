"""Remove local paths from everything that is published."""

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

AS_THEY_ARE = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "*.index.json")
"""JSON files without paths, in which a token that looks like a path must not be mistaken for one."""

PATH_IN_TEXT = re.compile(r"(?<![\w:/.~-])~?(?:/[\w.@+-]+){2,}/?")
PATH_IN_KEY = re.compile(r"(?:^|(?<=/))(?:/[\w.@+-]+){2,}/?")
"""In a name such as `loss/<source>`, whose source may be called by its path."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FOLDER_NAME = re.compile(r"\./[^/\\]+")
"""How a receipt names a folder: see [`public_name`]. It tells nothing about where the folder lies."""


def is_hub_id(text: str) -> bool:
    """Tell `organisation/name` from a path. Whatever exists on this machine is a path."""
    return HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def is_local_path(text: str) -> bool:
    """Tell whether a text is a path of this machine: absolute, relative with a leading dot or tilde, or existing."""
    if ("/" not in text and "\\" not in text) or FOLDER_NAME.fullmatch(text):
        return False
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith((".", "~")):
        return True
    return len(text) < 1024 and Path(text).exists()


def portable(content: Any) -> Any:
    """Return a JSON value with every local path in it cut down to its last part, keys included.

    A value that is a path becomes `./` and the last part, so that no folder passes for a model of the Hub; of a path
    within a sentence the last part stays.

    Example:
        >>> portable({"source": "/home/me/runs/base", "base": "org/model"})
        {'source': './base', 'base': 'org/model'}
    """
    if isinstance(content, dict):
        return {_portable_key(key): portable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [portable(value) for value in content]
    if isinstance(content, str):
        return f"./{_last_part(content)}" if is_local_path(content) else portable_text(content)
    return content


def _portable_key(key: Any) -> Any:
    return PATH_IN_KEY.sub(_last_part_of, key) if isinstance(key, str) else key


def portable_text(text: str) -> str:
    """Return a text in which only the last part of each absolute path is left."""
    return PATH_IN_TEXT.sub(_last_part_of, text)


def content_to_publish(path: Path) -> bytes | Path:
    """Return the content of a file without local paths; a file that is published as it is, by its path.

    Raises:
        ValueError: if a JSON file is damaged.
    """
    if path.suffix == ".md":
        return portable_text(path.read_text(encoding="utf-8")).encode()
    if path.suffix not in (".json", ".jsonl") or any(path.match(pattern) for pattern in AS_THEY_ARE):
        return path
    return portable_json(path)


def portable_json(path: Path) -> bytes:
    """Return a JSON or JSON lines file without local paths: unchanged, to the byte, if it has none.

    Raises:
        ValueError: if the file is not JSON.
    """
    raw = path.read_bytes()
    parts, indent = ([raw], 2) if path.suffix == ".json" else (raw.splitlines(), None)
    try:
        contents = [json.loads(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{path} is not a valid JSON file ({error}); write it again.") from error
    clean = _clean_tokenizer_config if path.name == "tokenizer_config.json" else portable
    cut = [clean(content) for content in contents]
    if cut == contents:
        return raw
    return "".join(json.dumps(content, indent=indent, ensure_ascii=False) + "\n" for content in cut).encode()


def _clean_tokenizer_config(content: Any) -> Any:
    """Cut down the entries that name a file; templates and tokens may hold slashes that are not paths."""
    return {key: portable(value) if key.endswith(("_path", "_file")) else value for key, value in content.items()}


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _last_part_of(match: re.Match[str]) -> str:
    return _last_part(match.group())
