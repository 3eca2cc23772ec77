"""What a training run left in its folder: checkpoints, logged values, stages. The only reader of these files."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hf_warmscale.staging import read_json

STATE_FILE = "trainer_state.json"
STAGE_FILE = "stage.json"
CONFIG_FILE = "config.json"
REMEDY = "use another checkpoint of the run"

COOLED_SHARE = 0.2
"""A plain trainer's run counts as cooled if its last rate is at most this share of its highest one."""

History = Sequence[Mapping[str, Any]]
"""The `log_history` of a trainer: one mapping per call of `log`, each with its `step`."""

Part = Literal["warmup", "constant", "cooldown", "cooled", "unknown"]
"""Where on the learning rate curve a checkpoint was saved."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(folder: str | os.PathLike[str]) -> int | None:
    """Return the step in the name of a `checkpoint-<step>` folder, `None` for any other name.

    Example:

    ```python
    >>> [checkpoint_step(name) for name in ("run/checkpoint-20", "run/checkpoint-20-keep", "run/checkpoint-best")]
    [20, None, None]

    ```
    """
    match = _CHECKPOINT.fullmatch(Path(folder).name)
    return int(match[1]) if match else None


def run_checkpoints(run: str | os.PathLike[str]) -> list[Path]:
    """Return the `checkpoint-<step>` folders of a run, the oldest first; an empty list for a run without any.

    Raises:
        FileNotFoundError: if there is no such folder.

    Args:
        run (`str` or `PathLike`): the `output_dir` of a training.

    Example:

    ```python
    >>> [checkpoint.name for checkpoint in run_checkpoints("runs/base")][-1]
    'checkpoint-1000'
    ```
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run {run}; check the path.")
    by_step = {step: path for path in run.iterdir() if (step := checkpoint_step(path)) is not None and path.is_dir()}
    return [by_step[step] for step in sorted(by_step)]


def read_trainer_state(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the content of the `trainer_state.json` of one folder, `None` where there is none.

    Raises:
        ValueError: if the file is damaged.

    Args:
        folder (`str` or `PathLike`): a checkpoint or the folder of a run.

    Example:

    ```python
    >>> read_trainer_state("run/checkpoint-1000")["global_step"] > 0
    True
    ```
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        return None
    state = read_json(path, REMEDY)
    if not isinstance(state.get("global_step"), int) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path} has no global_step or no log_history; use another checkpoint of the run.")
    return state


def read_stage(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the content of the `stage.json` of one folder, `None` where there is none.

    Raises:
        ValueError: if the file is damaged.

    Args:
        folder (`str` or `PathLike`): a checkpoint or the folder of a run.

    Example:

    ```python
    >>> read_stage("run/checkpoint-1000")["name"]
    'english'
    ```
    """
    path = Path(folder) / STAGE_FILE
    return read_json(path, REMEDY) if path.is_file() else None


def logged(history: History, name: str) -> list[tuple[int, float]]:
    """Return the step and the value of everything that was logged under a name, in order.

    Example:

    ```python
    >>> logged([{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 3.1}, {"step": 2, "loss": 2.5}], "loss")
    [(1, 3.0), (2, 2.5)]

    ```
    """
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def logged_names(history: History, prefix: str = "", suffix: str = "") -> list[str]:
    """Return the sorted names under which something was logged that have something between prefix and suffix.

    Example:

    ```python
    >>> logged_names([{"step": 1, "eval_loss": 3.0, "eval_german_loss": 4.0}], "eval_", "_loss")
    ['eval_german_loss']

    ```
    """
    shortest = len(prefix) + len(suffix)
    names = {key for entry in history for key in entry if key.startswith(prefix) and key.endswith(suffix)}
    return sorted(name for name in names if len(name) > shortest)


def total_tokens(stage: Mapping[str, Any]) -> int:
    """Return the tokens of a stage, given as the content of its `stage.json`, and of all stages before it.

    Args:
        stage (`Mapping[str, Any]`): the content of a `stage.json`.

    Example:

    ```python
    >>> total_tokens(read_stage("run/checkpoint-1000")) > 0
    True
    ```
    """
    parts = [*stage.get("lineage", []), stage]
    return sum(sum(part["progress"]["tokens"].values()) for part in parts)


class RunFolder:
    """The folder of a training run: what a `Trainer`, or a `ContinualTrainer` with its stages, left in it.

    The end of the run is the latest of the folder itself and of its last checkpoint. A checkpoint folder counts as a
    run that ends there.

    Args:
        path (`str` or `PathLike`): the `output_dir` of the run, or one of its checkpoints.

    Raises:
        FileNotFoundError: if there is no such folder, or no training run left it.
        ValueError: if a file of the run is damaged.

    Example:

    ```python
    >>> run = RunFolder("runs/base")
    >>> run.checkpoints[-1].name, run.last_logged("eval_loss"), run.total_tokens
    ('checkpoint-1000', 3.217, 8192000)
    ```
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = run_checkpoints(self.path)
        # Either may be ahead: a trainer can save into the folder itself at the end, or stop after a checkpoint.
        self._ends = [*self.checkpoints[-1:], self.path]
        states = [state for folder in self._ends if (state := read_trainer_state(folder)) is not None]
        if not states:
            raise FileNotFoundError(
                f"{self.path} has no {STATE_FILE}, nor has a checkpoint-<step> folder in it, so no training run left "
                "it; name the output_dir of a run that saved a checkpoint."
            )
        self.state: dict[str, Any] = max(states, key=lambda state: int(state["global_step"]))

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def global_step(self) -> int:
        """The optimizer steps that were made."""
        return int(self.state["global_step"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """What the trainer logged, in order."""
        history: list[dict[str, Any]] = self.state["log_history"]
        return history

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Return the step and the value of everything that was logged under a name."""
        return logged(self.history, name)

    def last_logged(self, name: str) -> float | None:
        """Return the last value that was logged under a name, `None` if there is none."""
        values = self.logged(name)
        return values[-1][1] if values else None

    @cached_property
    def stage(self) -> dict[str, Any] | None:
        """The content of `stage.json` at the end of the run, `None` for a run without stages."""
        stages = [stage for folder in self._ends if (stage := read_stage(folder)) is not None]
        return max(stages, key=_stage_step) if stages else None

    @property
    def is_finished(self) -> bool:
        """Whether the run made all of its steps."""
        wanted = self.state.get("max_steps") if self.stage is None else _stage_length(self.stage)
        return wanted is not None and self.global_step >= wanted > 0

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of the model's `config.json`, at the end of the run.

        Raises:
            FileNotFoundError: if neither the last checkpoint nor the folder has one.
        """
        for folder in self._ends:
            if (folder / CONFIG_FILE).is_file():
                return read_json(folder / CONFIG_FILE, REMEDY)
        raise FileNotFoundError(f"{self.path} has no {CONFIG_FILE}; train with a model of transformers.")

    @property
    def total_tokens(self) -> int | None:
        """The tokens of the run and of all stages before it, `None` for a run without stages."""
        return None if self.stage is None else total_tokens(self.stage)

    @property
    def data_hash(self) -> str | None:
        """A hash of the data of all stages so far: sources and shares, without the order of the rows.

        A branch that continues the mixture of its trunk has the hash of the trunk. `None` without stages.
        """
        if self.stage is None:
            return None
        content: list[Any] = []
        for part in [*self.stage.get("lineage", []), self.stage]:
            data = {key: part["mixture"][key] for key in ("sources", "weights", "changes") if key in part["mixture"]}
            content += [data] if data not in content else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def part_at(self, step: int) -> Part:
        """Return where on the learning rate curve a step lies, as far as the folder tells.

        `"cooled"` is the end of a stage whose schedule falls, or of a plain run whose rate fell. All other answers
        come from the rates that were logged up to the step: the last two are equal, or they rise, or they fall.
        """
        rates = [rate for at, rate in self.logged("learning_rate") if at <= step]
        if self._is_cooled(step, rates):
            return "cooled"
        if len(rates) < 2:
            return "unknown"
        before, last = rates[-2:]
        if abs(last - before) <= 1e-9 * max(rates):
            return "constant"
        return "warmup" if last > before else "cooldown"

    def _is_cooled(self, step: int, rates: list[float]) -> bool:
        if self.stage is None:
            return step == self.global_step and bool(rates) and rates[-1] <= COOLED_SHARE * max(rates)
        schedule = self.stage["schedule"]
        floor, peak = schedule.get("min_lr"), schedule.get("learning_rate")
        falls = schedule["name"] != "constant" and (floor is None or peak is None or floor < peak)
        return step == _stage_length(self.stage) and bool(falls)


def _stage_step(stage: Mapping[str, Any]) -> int:
    return int(stage["progress"]["step"])


def _stage_length(stage: Mapping[str, Any]) -> int:
    """Return the steps that a stage takes; `num_steps` counts in the changes of its total batch."""
    return int(stage.get("num_steps") or stage["max_steps"])
