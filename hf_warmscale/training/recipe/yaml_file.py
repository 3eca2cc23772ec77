"""YAML that is read strictly: `1e-3` is a number, and a key that occurs twice is an error."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the two changes of this module."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping and refuse duplicate keys, of which PyYAML would silently keep the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"The key {key!r} occurs twice; keep one.")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` as text, because it asks for a dot in the mantissa.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not YAML, or holds no keys.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The configuration {path} does not exist; check the path.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {_fault(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys; write one `key: value` per line.")
    return {str(key): value for key, value in content.items()}


def _fault(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return what is wrong with a file, and in which line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    line = f"line {error.problem_mark.line + 1}"
    if "'\\t'" in (error.problem or ""):
        return f"{line} has a tab; indent with spaces"
    return f"{line}: {error.problem}; look at the indentation and the colons there and in the line before"


def as_value(name: str, value: Any) -> Any:
    """Return a field that is a value in the file and JSON on the command line.

    Raises:
        ValueError: if text is no YAML.
    """
    try:
        return yaml.load(value, Loader) if isinstance(value, str) else value  # a SafeLoader; JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error


def as_mapping(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return a field that is a mapping in the file and JSON on the command line.

    Raises:
        ValueError: if it is neither.
    """
    content = as_value(name, value)
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be a mapping, such as {{name: value}}.")
    return dict(content)
