"""The YAML file of a stage: strict, with the command line above it."""

import os
import re
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from transformers import HfArgumentParser

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.arguments import ContinualTrainingArguments
from hf_warmscale.training.branching import anneal_stage
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.launch import prepare_processes
from hf_warmscale.training.schedules.rates import Shape
from hf_warmscale.training.stage import Stage


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint, folder or Hub name to start from; it becomes the parent."}
    )
    model_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fields of a config, with model_type, to start from random weights instead; JSON."},
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Where the tokenizer is; by default with the model."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights in memory."})
    lora: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Train adapters: the fields of peft's LoraConfig, as JSON."}
    )


@dataclass
class StageArguments:
    """Which stage to train it on."""

    stage: str = field(default="stage", metadata={"help": "Name of the stage."})
    schedule: dict[str, Any] | str | None = field(  # of `dict | str`, HfArgumentParser would take a dict only
        default="rewarm_cosine", metadata={"help": "Name of the schedule, or name and parameters as JSON."}
    )
    max_tokens: float | None = field(
        default=None, metadata={"help": "Length in tokens, for packed rows; max_steps is the alternative."}
    )
    optimizer_state: str = field(
        default="reset",
        metadata={"help": "'reset' or 'keep' the moments of the parent.", "choices": ["reset", "keep"]},
    )
    parent: str | None = field(
        default=None, metadata={"help": "Checkpoint whose lineage continues; by default model_name_or_path."}
    )
    mixture: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Sources by name, as JSON: {path, weight} for packed rows, {stream, num_rows, sequence_length, "
            "weight} for a dataset read as it comes (also subset, split, text_column); if wanted seen_by (a "
            "checkpoint: only rows that its run saw), name (of the source in that run) and max_passes."
        },
    )
    anneal_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint in the constant phase of the stage that this file describes: load it, moments "
            "included, and anneal it instead; give another output_dir."
        },
    )
    anneal_until: float | None = field(
        default=None, metadata={"help": "Tokens of trunk and anneal together at which the anneal ends."}
    )
    anneal_shape: str | None = field(
        default=None, metadata={"help": "Of the anneal: linear, 1-sqrt, cosine or exponential."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Of the orders of rows."})
    evaluation: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Packed data to evaluate on, by domain, as JSON."}
    )


@dataclass
class TrainingConfiguration:
    """Everything that `warmscale train` reads."""

    model: ModelArguments
    stage: StageArguments
    training: ContinualTrainingArguments


class Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing a key that is there twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"The key {key!r} is there twice; keep one.")
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_configuration(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainingConfiguration:
    """Read the YAML file of a stage.

    Args:
        path (`str` or `PathLike`): the file; its keys are the fields of `ModelArguments`, `StageArguments` and
            `ContinualTrainingArguments`.
        overrides (`Sequence[str]`): command line options, which win over the file: `["--learning_rate", "1e-3"]`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not YAML, an unknown key or option (naming the nearest one), or a wrong type.

    Example:

    ```python
    >>> configuration = read_configuration("german.yaml", ["--max_tokens", "1000000"])
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration {path}; check the path.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys; give one `key: value` a line.")
    parser = make_parser()
    known = {field.name: field.type for part in parser.dataclass_types for field in fields(part) if field.init}
    for key in content:
        refuse_unknown(f"key in {path.name}", str(key), known)
    given = content | _parse_overrides(parser, overrides)
    _refuse_wrong_types(given, known)
    prepared = prepare_processes(given)
    try:
        model, stage, training = parser.parse_dict(prepared)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from error
    return TrainingConfiguration(model, stage, training)


def make_parser() -> HfArgumentParser:
    """Return the parser of all fields, also for `--help`."""
    parts: Any = (ModelArguments, StageArguments, ContinualTrainingArguments)
    return HfArgumentParser(
        parts, prog="warmscale train CONFIG.yaml", formatter_class=ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def plan_stage(arguments: StageArguments, training: ContinualTrainingArguments, **data: Any) -> Stage:
    """Make the stage that a configuration describes, and leave its length to it.

    Args:
        arguments (`StageArguments`): name, schedule, length and parent.
        training (`ContinualTrainingArguments`): `max_steps` moves from here into the stage.
        data: the `mixture`.
    """
    max_steps = training.max_steps if training.max_steps > 0 else None
    training.max_steps = -1
    max_tokens = None if arguments.max_tokens is None else int(arguments.max_tokens)
    if arguments.anneal_from is not None:
        return _plan_anneal(arguments, max_steps, max_tokens, **data)
    for name in ("anneal_until", "anneal_shape"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"{name} is of an anneal; name the checkpoint with anneal_from.")
    return Stage(
        arguments.stage,
        _schedule(arguments.schedule),
        max_steps=max_steps,
        max_tokens=max_tokens,
        optimizer="keep" if arguments.optimizer_state == "keep" else "reset",
        parent=arguments.parent,
        **data,
    )


def _plan_anneal(
    arguments: StageArguments, max_steps: int | None, max_tokens: int | None, mixture: ReplayMixture | None = None
) -> Stage:
    """Make the branch; `anneal_until` takes the place of the trunk's length."""
    assert arguments.anneal_from is not None
    until, shape = arguments.anneal_until, arguments.anneal_shape
    if shape is not None:
        refuse_unknown("anneal_shape", shape, get_args(Shape))
    return anneal_stage(
        arguments.anneal_from,
        mixture,
        max_steps=max_steps if until is None else None,
        max_tokens=max_tokens if until is None else None,
        until_tokens=None if until is None else int(until),
        shape=cast(Shape | None, shape),
        name=f"{arguments.stage}-anneal",
    )


def as_mapping(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return a field that the file gives as a mapping and the command line as JSON.

    Raises:
        ValueError: if it is neither.
    """
    content = yaml.load(value, Loader) if isinstance(value, str) else value  # a SafeLoader; JSON is YAML
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} is {value!r}; give it as a mapping.")
    return dict(content)


def _schedule(value: Mapping[str, Any] | str | None) -> dict[str, Any] | str:
    """Return the name of a schedule, or what the mapping or its JSON says."""
    named = isinstance(value, str) and not value.lstrip().startswith("{")
    return str(value) if named else as_mapping("schedule", value)


def _parse_overrides(parser: HfArgumentParser, overrides: Sequence[str]) -> dict[str, Any]:
    for word in overrides:
        if word.startswith("--"):
            option = word[2:].split("=")[0]
            refuse_unknown("option", option.replace("-", "_"), [action.dest for action in parser._actions])
    for action in parser._actions:
        action.default = SUPPRESS
    parser.exit_on_error = False
    try:
        namespace, rest = parser.parse_known_args(list(overrides))
    except Exception as error:  # argparse raises ArgumentError and what the type function raised
        raise ValueError(f"The options cannot be read: {error}") from error
    if rest:
        raise ValueError(f"There is no use for {' '.join(rest)}; options are given as --name value.")
    return dict(vars(namespace))


def _refuse_wrong_types(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse text or a list where the field is a plain number or switch; what has a richer type checks itself."""
    for key, value in given.items():
        text = str(known[key])
        allowed = {name: kind for name, kind in (("int", int), ("float", float), ("bool", bool)) if name in text}
        if "str" in text or "dict" in text or "list" in text or not allowed or value is None:
            continue
        if isinstance(value, bool) and "bool" in allowed:
            continue
        numbers = (int, float) if "float" in allowed else (int,)
        if isinstance(value, bool) or not isinstance(value, numbers):
            raise ValueError(f"{key} is {value!r}; give a {' or '.join(allowed)}.")
