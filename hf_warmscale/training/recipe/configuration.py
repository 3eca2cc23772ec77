"""The configuration of a stage: a YAML file, with the command line above it."""

import os
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.arguments import ContinualTrainingArguments
from hf_warmscale.training.launch import prepare_processes
from hf_warmscale.training.recipe.fields import ModelArguments, StageArguments
from hf_warmscale.training.recipe.yaml_file import read_yaml

PARTS: Any = (ModelArguments, StageArguments, ContinualTrainingArguments)
ABSENT = object()


@dataclass
class TrainingConfiguration:
    """Everything that `warmscale train` reads.

    Args:
        model (`ModelArguments`): which model to train.
        stage (`StageArguments`): on which stage.
        training_fields (`dict`): the fields of `ContinualTrainingArguments` that were given.
        file (`str`): the name of the file, for errors.
    """

    model: ModelArguments
    stage: StageArguments
    training_fields: dict[str, Any]
    file: str

    @cached_property
    def training(self) -> ContinualTrainingArguments:
        """The training arguments. transformers starts the process group while it builds them, so reading does not.

        Raises:
            ValueError: if a value cannot be used, or several processes were started in a way that would lose one.
        """
        (training,) = parse_fields(PARTS[2:], prepare_processes(self.training_fields), self.file)
        assert isinstance(training, ContinualTrainingArguments)
        return training


def read_configuration(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainingConfiguration:
    """Read the YAML file of a stage.

    Args:
        path (`str` or `PathLike`): the file; its keys are the fields of `ModelArguments`, `StageArguments` and
            `ContinualTrainingArguments`.
        overrides (`Sequence[str]`): command line options, which win over the file: `["--learning_rate", "1e-3"]`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not YAML, a key or option is unknown (the nearest one is named), or a value has the
            wrong type.

    Example:

    ```python
    >>> configuration = read_configuration("german.yaml", ["--max_tokens", "1000000"])
    ```
    """
    file = Path(path).name
    content = read_yaml(path)
    known = {field.name: field.type for part in PARTS for field in fields(part) if field.init}
    for key in content:
        refuse_unknown(f"key in {file}", key, known)
    given = content | parse_overrides(overrides, known)
    refuse_wrong_types(given, known)
    training = {field.name for field in fields(ContinualTrainingArguments)}
    model, stage = parse_fields(PARTS[:2], {key: given[key] for key in given if key not in training}, file)
    return TrainingConfiguration(model, stage, {key: given[key] for key in given if key in training}, file)


def make_parser() -> HfArgumentParser:
    """Return the parser of all fields, also for `--help`."""
    return HfArgumentParser(
        PARTS, prog="warmscale train CONFIG.yaml", formatter_class=ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def parse_fields(parts: tuple[Any, ...], given: dict[str, Any], file: str) -> tuple[Any, ...]:
    """Build dataclasses from the fields that were given."""
    try:
        return tuple(HfArgumentParser(parts).parse_dict(given))
    except (TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def parse_overrides(overrides: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed, and only those, by the name of their field."""
    for word in overrides:
        if word.startswith("--"):
            refuse_unknown("option", word[2:].split("=")[0].replace("-", "_"), known)
    parser = make_parser()
    parser.exit_on_error = False
    # argparse leaves alone what the namespace already holds, so what is still absent afterwards was not typed.
    untyped = Namespace(**dict.fromkeys(known, ABSENT))
    try:
        namespace, rest = parser.parse_known_args(list(overrides), untyped)
    except Exception as error:  # argparse raises ArgumentError and whatever the type function raised
        raise ValueError(f"The options cannot be read: {error}") from error
    if rest:
        raise ValueError(f"Unexpected argument: {' '.join(rest)}; write options as --name value.")
    return {name: value for name, value in vars(namespace).items() if value is not ABSENT}


def refuse_wrong_types(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse text or a list where the field is a number or a switch; fields of a richer type check themselves."""
    for key, value in given.items():
        text = str(known[key])
        allowed = {name: kind for name, kind in (("int", int), ("float", float), ("bool", bool)) if name in text}
        if "str" in text or "dict" in text or "list" in text or not allowed or value is None:
            continue
        if isinstance(value, bool) and "bool" in allowed:
            continue
        numbers = (int, float) if "float" in allowed else (int,)
        if isinstance(value, bool) or not isinstance(value, numbers):
            raise ValueError(f"{key} is {value!r}; it must be {' or '.join(allowed)}.")
