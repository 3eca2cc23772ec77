"""The points of a ladder, read from the folders of its training runs, and whether they are of one recipe."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_warmscale.architecture import Axis, find_field
from hf_warmscale.checkpoints import RunFolder, skeleton
from hf_warmscale.mup import FORWARD_MULTIPLIERS
from hf_warmscale.scaling.frame import Frame, make_frame

METRIC = "eval_loss"

MUP_BASE = "base_"
"""The prefix of the entries of a muP config that hold the sizes at which the rates were tuned."""

FOLLOW_THE_WIDTH = frozenset(f"model.{name}" for name in FORWARD_MULTIPLIERS)
"""Recorded arguments that differ between the rungs of a muP ladder because the rule says so."""


@dataclass(frozen=True)
class LadderRun:
    """A finished run as one point of a ladder.

    Args:
        folder (`RunFolder`): of the run.
        loss (`float`): the validation loss at its end.
        tokens (`int`): that the model has seen, over all stages.
        config (`PreTrainedConfig`): of the model.
    """

    folder: RunFolder
    loss: float
    tokens: int
    config: PreTrainedConfig

    @property
    def name(self) -> str:
        """The path of the folder."""
        return str(self.folder.path)

    @property
    def hidden_size(self) -> int:
        """The hidden size of the model."""
        return int(getattr(self.config, find_field(self.config, Axis.HIDDEN) or "hidden_size"))

    @property
    def trunk(self) -> str:
        """What branches of one trunk share: size, seed of the data, and the first stage. They are not independent."""
        stage = self.folder.stage or {}
        first = [*stage.get("lineage", []), stage][0]
        seed = first.get("mixture", {}).get("seed")
        return f"{self.hidden_size}/{first.get('name')}/{seed}"

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The numbers of parameters with and without the embeddings and the readout; tied weights count once."""
        return count_parameters(self.config)

    def recipe(self) -> dict[str, Any]:
        """Return what all runs of a ladder must share, by name."""
        stage = self.folder.stage or {}
        mup = getattr(self.config, "mup", None) or {}
        arguments = flat(stage.get("arguments", {}))
        return {
            "muP base": {name: value for name, value in sorted(mup.items()) if name.startswith(MUP_BASE)},
            "muP rule": mup.get("rule"),
            "learning rate": (stage.get("schedule") or {}).get("learning_rate"),
            "data": self.folder.data_hash,
            "rows in a step": _rows_in_a_step(stage),
            "vocabulary": getattr(self.config, "vocab_size", None),
            **{name: value for name, value in arguments.items() if not mup or name not in FOLLOW_THE_WIDTH},
        }


def _rows_in_a_step(stage: Mapping[str, Any]) -> Any:
    """Return the total batch; where it was changed on the way, with the samples at which the others begin."""
    first, changes = stage.get("samples_per_step"), stage.get("batch_changes", [])
    return first if not changes else {0: first, **{each["sample"]: each["samples_per_step"] for each in changes}}


def read_run(path: str | os.PathLike[str], *, metric: str = METRIC) -> LadderRun:
    """Read a finished, cooled run.

    Args:
        path (`str` or `PathLike`): the folder of the run.
        metric (`str`): the logged validation loss.

    Raises:
        FileNotFoundError: if no training run left the folder.
        ValueError: if the run has no stage, did not end cooled, or was not evaluated at its end.

    Example:

    ```python
    >>> run = read_run("runs/128")
    >>> run.hidden_size, run.tokens, run.loss
    (128, 20000000, 3.2)
    ```
    """
    folder = RunFolder(path)
    tokens = folder.total_tokens
    if tokens is None:
        raise ValueError(f"{path} was trained without a stage, so its tokens are unknown; use ContinualTrainer.")
    if folder.part_at(folder.global_step) != "cooled":
        raise ValueError(
            f"{path} has no cooled point: it ends at step {folder.global_step} with a learning rate that has not come "
            "down; anneal a branch of it (anneal_stage), or leave it out."
        )
    values = folder.logged(metric)
    if not values or values[-1][0] != folder.global_step:
        raise ValueError(
            f"{path} logged no {metric} at its last step, {folder.global_step}; train with an eval_dataset and "
            "eval_strategy='steps', or name another metric."
        )
    return LadderRun(folder, float(values[-1][1]), tokens, config_from(folder.config))


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, under dotted names.

    Example:

    ```python
    >>> flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}

    ```
    """
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def config_from(content: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config of a `config.json`.

    Raises:
        ValueError: if transformers does not know its model type.
    """
    name = str(content.get("model_type"))
    if name not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no model type {name!r}; a ladder needs stock models.")
    config: PreTrainedConfig = CONFIG_MAPPING[name].from_dict(dict(content))
    return config


def count_parameters(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the numbers of parameters with and without embedding and readout; tied weights count once."""
    model = skeleton(config_from(config.to_dict()))  # the stock family of a muP config
    total = sum(parameter.numel() for parameter in model.parameters())
    # By identity, so that a tied embedding and readout count once.
    ends: dict[int, int] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in module.parameters() if isinstance(module, nn.Module) else ():
            ends[id(parameter)] = parameter.numel()
    return total, total - sum(ends.values())


def ladder_frame(runs: Sequence[LadderRun], *, embeddings: bool = True) -> Frame:
    """Return the frame of a ladder; the runs of one trunk form one cluster.

    Raises:
        ValueError: if a folder is named twice.

    Example:

    ```python
    >>> frame = ladder_frame([read_run(f"runs/{hidden_size}") for hidden_size in (32, 64, 96, 128)])
    >>> len(frame), frame.embeddings
    (4, True)
    ```
    """
    _refuse_twice(runs)
    rows: list[dict[str, Any]] = []
    for run in runs:
        size = run.sizes[0 if embeddings else 1]
        # Branches of one trunk differ in their tokens. The same size and tokens again means another run altogether.
        taken = any((row["run"], row["N"], row["D"]) == (run.trunk, size, run.tokens) for row in rows)
        label = run.name if taken else run.trunk  # another init of the same data: a run of its own
        rows.append({"N": size, "D": run.tokens, "loss": run.loss, "run": label, "part": "cooled"})
    return make_frame(rows, "chinchilla", embeddings=embeddings)


def _refuse_twice(runs: Sequence[LadderRun]) -> None:
    seen: set[str] = set()
    for run in runs:
        path = str(run.folder.path.resolve())
        if path in seen:
            raise ValueError(f"The run {run.name} is named twice; name every folder once.")
        seen.add(path)


def recipe_flags(runs: Sequence[LadderRun]) -> list[str]:
    """Return what keeps the runs from being one ladder: no muP, or a base, rate or data that differ."""
    flags = []
    if not all(getattr(run.config, "mup", None) for run in runs):
        flags.append("not muP: rates do not carry over between sizes, so the law mixes sizes with mistuned rates")
    recipes = [run.recipe() for run in runs]
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values: list[Any] = []
        for recipe in recipes:
            values += [recipe.get(name)] if recipe.get(name) not in values else []
        if len(values) > 1:
            flags.append(f"mixed recipes: {name} is {' or '.join(map(str, values[:3]))}")
    return flags


def config_at(runs: Sequence[LadderRun], hidden_size: int) -> PreTrainedConfig:
    """Return the config that continues a ladder to another hidden size: every size in the proportion of the runs.

    Raises:
        ValueError: if a size is neither constant nor in proportion to the hidden size.
    """
    largest = max(runs, key=lambda run: run.hidden_size)
    content, width = largest.config.to_dict(), largest.hidden_size
    resized = dict(content)
    for name, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        pairs = [(run.hidden_size, run.config.to_dict().get(name)) for run in runs]
        if all(other == value for _, other in pairs):
            continue
        # In proportion, up to rounding to whole numbers: other / size = value / width.
        if any(isinstance(other, int | float) and abs(other * width - value * size) > 0.5 for size, other in pairs):
            if isinstance(value, float):
                continue  # a multiplier: it changes no number of parameters
            raise ValueError(
                f"{name} is neither constant nor in proportion over the runs; give num_parameters instead."
            )
        scaled = value * hidden_size / width
        if isinstance(value, int) and scaled != round(scaled):
            raise ValueError(
                f"The hidden size {hidden_size} would need {name} = {scaled:g}; take another hidden size."
            )
        resized[name] = round(scaled) if isinstance(value, int) else scaled
    return config_from({**resized, "mup": None} if "mup" in resized else resized)
