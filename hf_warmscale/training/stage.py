"""One stage of training, with one mixture and one schedule, and the record of it that every checkpoint holds."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_warmscale.checkpoints.portable import portable
from hf_warmscale.checkpoints.receipts import FORMAT_VERSION, Receipt, check_format_version
from hf_warmscale.checkpoints.run_folder import STAGE_FILE, read_stage, total_tokens
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.staging import as_json
from hf_warmscale.training.data.batch_sizes import BatchPlan, BatchSizes, batch_plan
from hf_warmscale.training.data.mixture import ReplayMixture, SeenRows
from hf_warmscale.training.data.rows import Rows, refuse_other_rows
from hf_warmscale.training.schedules.schedule import Schedule, get_schedule

OptimizerPolicy = Literal["reset", "keep"]
"""What a new stage does with the moments of its parent: drop them (as in 2403.08763) or take them over."""


@dataclass
class Stage:
    """What to train on, for how long, and with which learning rates.

    Args:
        name (`str`): identifies the stage: a checkpoint of a stage of this name is continued, a checkpoint of any
            other stage is where this one starts.
        schedule (`Schedule`, `str` or `Mapping`): from `get_schedule`, a name, or a name with its parameters.
        mixture (`ReplayMixture`, *optional*): the training data; by default the `train_dataset` of the trainer.
        max_steps (`int`, *optional*): the length in optimizer steps. If the total batch changes on the way, they are
            steps of the first total batch: the stage reads `max_steps` times that many rows, and makes fewer or more
            steps. The same holds for a schedule in steps: it is a function of the rows that were read.
        max_tokens (`int`, *optional*): instead, the length in tokens, for rows of equal length; the stage ends with
            the first step that reaches it.
        total_batch_size (`int` or `Mapping[int, int]`, *optional*): rows in one optimizer step, over all ranks and
            accumulation steps; by default those of the training arguments. One that changes along the stage is a
            mapping from the sample at which it begins to rows: `{0: 16, 640: 32}`. The micro-batch stays, and the
            accumulation steps follow from it, so leave `gradient_accumulation_steps` out. Each change point ends an
            epoch of the trainer, for strategies by epoch.
        optimizer (`str`): whether to `"reset"` or `"keep"` the moments of the parent.
        parent (`str` or `PathLike`, *optional*): the checkpoint whose weights the model was loaded from; its lineage
            continues in this stage.

    Raises:
        ValueError: unless exactly one positive length is given; if a total batch is not positive, or would begin in
            the middle of a step.

    Example:

    ```python
    >>> stage = Stage("german", "rewarm_cosine", max_steps=200, total_batch_size={0: 8, 800: 16})
    >>> stage.schedule.name, stage.num_steps(samples_per_step=8)
    ('rewarm_cosine', 200)

    ```
    """

    name: str
    schedule: Schedule
    mixture: ReplayMixture | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    total_batch_size: dict[int, int] | None = None
    optimizer: OptimizerPolicy = "reset"
    parent: str | os.PathLike[str] | None = None

    def __init__(
        self,
        name: str,
        schedule: Schedule | str | Mapping[str, Any],
        mixture: ReplayMixture | None = None,
        *,
        max_steps: int | None = None,
        max_tokens: int | None = None,
        total_batch_size: int | BatchPlan | None = None,
        optimizer: OptimizerPolicy = "reset",
        parent: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name, self.mixture, self.parent = name, mixture, parent
        self.schedule = _schedule(schedule)
        self.max_steps, self.max_tokens = max_steps, max_tokens
        self.total_batch_size = None if total_batch_size is None else batch_plan(total_batch_size)
        refuse_unknown("optimizer policy", optimizer, ("reset", "keep"))
        self.optimizer = optimizer
        if (max_steps is None) == (max_tokens is None):
            raise ValueError(f"The stage {name!r} needs one length: give either max_steps or max_tokens.")
        if (max_steps or max_tokens or 0) < 1:
            raise ValueError(f"The stage {name!r} has the length {max_steps or max_tokens}; make it positive.")

    def num_steps(self, *, samples_per_step: int, row_length: int | None = None) -> int:
        """Return the length in optimizer steps.

        Args:
            samples_per_step (`int`): rows in the first optimizer step, over all ranks.
            row_length (`int`, *optional*): tokens in every row; `None` if rows differ.
        """
        if self.max_steps is not None:
            return self.max_steps
        if row_length is None:
            raise ValueError(
                f"The rows of the stage {self.name!r} differ in length; give max_steps, or pack the data."
            )
        assert self.max_tokens is not None
        return math.ceil(self.max_tokens / (samples_per_step * row_length))


def _schedule(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        return get_schedule(schedule)
    if "name" not in schedule:
        raise ValueError(f"The schedule {dict(schedule)} has no name; add name: rewarm_cosine, or another one.")
    return get_schedule(**schedule)


@dataclass
class Progress:
    """How far a stage has come, over all ranks, with rows and tokens by source.

    Example:

    ```python
    >>> Progress(step=10, samples=80, tokens={"english": 20_480}).tokens["english"]
    20480
    ```
    """

    step: int = 0
    samples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    loss_tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def num_tokens(self) -> int:
        """Return the tokens of all sources."""
        return sum(self.tokens.values())


@dataclass
class StageRecord(Receipt):
    """The content of `stage.json`. See [`Receipt`].

    The file itself may name a source by its path, as the user did: a stage is resumed only with the same names.

    Args:
        name (`str`): of the stage.
        schedule (`dict`): the resolved schedule.
        max_steps (`int`): the length of the stage, in steps of `samples_per_step` rows.
        samples_per_step (`int`): rows in the first optimizer step, over all ranks.
        optimizer (`str`): `"reset"` or `"keep"`.
        mixture (`dict`): see `ReplayMixture.describe`.
        arguments (`dict`): the training arguments that shape the trajectory.
        progress (`Progress`): how far it has come.
        start_losses (`dict`): evaluation loss by domain before the first step, `None` where it was not finite.
        batch_changes (`list[dict]`): where the total batch changes: `step`, `sample` and the new `samples_per_step`.
        num_steps (`int`): the length of the stage in the steps that it really takes, with these changes.
        lineage (`list[dict]`): the earlier stages, the first one first: name, mixture and progress at the branch.
        written_as (`int`): the format version of the file it was read from.

    Example:

    ```python
    >>> record = StageRecord.load("runs/base/checkpoint-1000")
    >>> record.name, record.progress.step, record.total_tokens()
    ('english', 1000, 8192000)
    ```
    """

    file_name: ClassVar[str] = STAGE_FILE
    title: ClassVar[str] = "Training stage"
    tag: ClassVar[str] = "continual-pretraining"
    format_version: ClassVar[int] = 2
    """Version 1, of 0.1.0, names no version and records fewer arguments."""

    name: str
    schedule: dict[str, Any]
    max_steps: int
    samples_per_step: int
    optimizer: OptimizerPolicy
    mixture: dict[str, Any]
    arguments: dict[str, Any]
    progress: Progress = field(default_factory=Progress)
    start_losses: dict[str, float | None] = field(default_factory=dict)
    batch_changes: list[dict[str, int]] = field(default_factory=list)
    num_steps: int = 0
    lineage: list[dict[str, Any]] = field(default_factory=list)
    written_as: int = 2

    def __post_init__(self) -> None:
        self.num_steps = self.batch_sizes.num_steps(self.max_steps * self.samples_per_step)

    @property
    def batch_sizes(self) -> BatchSizes:
        """The total batch of every step."""
        return BatchSizes.read(self.samples_per_step, self.batch_changes)

    def position(self, step: int) -> float:
        """Return where a zero-based step stands in the schedule, which counts steps of the first total batch."""
        return self.batch_sizes.position(step, ahead=self.schedule["step_offset"]) if self.batch_changes else step

    @classmethod
    def load(cls, checkpoint: str | os.PathLike[str]) -> Self:
        """Read the record of a checkpoint.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if no stage wrote the checkpoint, a newer version of this package did, or the file is damaged.
        """
        path = Path(checkpoint) / STAGE_FILE
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no checkpoint {checkpoint}; check the path.")
        content = read_stage(checkpoint)
        if content is None:
            raise ValueError(
                f"{checkpoint} has no {STAGE_FILE}, so no stage wrote it; load its weights with from_pretrained and "
                "start a stage from them."
            )
        return cls._read(content, str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a `stage.json` of this or an earlier version.

        Raises:
            ValueError: if a newer version wrote it, or it is damaged.
        """
        return cls._read(content, STAGE_FILE)

    @classmethod
    def _read(cls, content: Mapping[str, Any], path: str) -> Self:
        check_format_version(content, cls.format_version, f"file {path}")
        fields = {**content}
        version = fields.pop(FORMAT_VERSION, 1)
        try:
            return cls(**{**fields, "progress": Progress(**fields["progress"]), "written_as": version})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); use another checkpoint of the run.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the record into a checkpoint that is being staged; numbers that are not finite become null."""
        (Path(folder) / STAGE_FILE).write_text(as_json(self._content()), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without local paths, for a card."""
        content: dict[str, Any] = portable(self._content())
        return content

    def _content(self) -> dict[str, Any]:
        own = {name: value for name, value in asdict(self).items() if name != "written_as"}
        return {**own, FORMAT_VERSION: self.format_version}

    def summary(self) -> str:
        """Return one sentence for the card."""
        earlier = ", ".join(f"`{entry['name']}`" for entry in self.lineage)
        after = f" after {earlier}" if earlier else ""
        return f"Trained in the stage `{self.name}`{after}, on {self.total_tokens():,} tokens in all."

    def sources(self) -> list[str]:
        """Return no names: a stage trains the weights that are in its folder."""
        return []

    def as_ancestor(self, checkpoint: str | os.PathLike[str]) -> list[dict[str, Any]]:
        """Return the lineage of a stage that starts from this one."""
        entry = {
            "name": self.name,
            # The name alone, so that the record stays true when the run folder is moved.
            "checkpoint": Path(checkpoint).name,
            "optimizer": self.optimizer,
            "mixture": self.mixture,
            "progress": asdict(self.progress),
        }
        return [*self.lineage, entry]

    def total_tokens(self) -> int:
        """Return the tokens of this stage and of all before it."""
        return total_tokens(asdict(self))

    def differences(self, other: "StageRecord") -> dict[str, tuple[Any, Any]]:
        """Return what shapes the trajectory and differs, by dotted name: (here, there).

        What a file of an older format does not record is taken as equal.
        """
        mine, theirs = (_flat({key: getattr(record, key) for key in DEFINING}) for record in (self, other))
        for record, flat in ((self, mine), (other, theirs)):
            # Mappings are equal in any order, but the order of the sources decides which samples each of them gives.
            flat["mixture.order"] = list(record.mixture["sources"])
        keys = [*mine, *(key for key in theirs if key not in mine)]
        keys = [key for key in keys if not key.endswith(".content") or (key in mine and key in theirs)]
        if min(self.written_as, other.written_as) < self.format_version:
            keys = [key for key in keys if not key.startswith("arguments.") or (key in mine and key in theirs)]
        return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}


DEFINING = ("schedule", "max_steps", "samples_per_step", "optimizer", "mixture", "arguments")


def seen_rows(
    checkpoint: str | os.PathLike[str], sources: Mapping[str, Rows], *, stage: str | None = None
) -> dict[str, SeenRows]:
    """Restrict datasets to the rows that an earlier stage really saw, for replay.

    Args:
        checkpoint (`str` or `PathLike`): a checkpoint of that stage, or of a stage that descends from it.
        sources (`Mapping[str, Rows]`): the datasets, under the names they had in that stage.
        stage (`str`, *optional*): the name of the stage; by default the earliest one that drew from the source.

    Returns:
        `dict[str, SeenRows]`: datasets for a `ReplayMixture`.

    Raises:
        ValueError: if no such stage saw a source, or if the source no longer holds the same rows.

    Example:

    ```python
    >>> old = seen_rows("runs/base/checkpoint-1000", {"english": english})
    >>> mixture = ReplayMixture({"german": german, **old}, {"german": 0.75, "english": 0.25})
    ```
    """
    record = StageRecord.load(checkpoint)
    return {name: _seen(record.as_ancestor(checkpoint), name, rows, stage) for name, rows in sources.items()}


def _seen(stages: list[dict[str, Any]], name: str, rows: Rows, stage: str | None) -> SeenRows:
    for entry in stages:
        count = entry["progress"]["rows"].get(name, 0)
        if count and stage in (None, entry["name"]):
            refuse_other_rows(name, rows, entry["mixture"]["sources"][name])
            start = entry["mixture"].get("skipped_rows", {}).get(name, 0)
            return SeenRows(rows, name=name, seed=entry["mixture"]["seed"], count=count, start=start)
    known = sorted({source for entry in stages for source, count in entry["progress"]["rows"].items() if count})
    where = f"The stage {stage!r}" if stage else "The run"
    raise ValueError(f"{where} never saw the source {name!r}; replay one of {', '.join(known) or 'none'}.")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
