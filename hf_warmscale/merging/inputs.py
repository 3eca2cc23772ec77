"""The checkpoints of a merge: opened, compared, and named for the record."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hf_warmscale.checkpoints import Checkpoint, open_checkpoint, public_name, refuse_non_finite

NOT_IN_THE_FORWARD_PASS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "transformers_version",
        "use_cache",
    }
)
"""Config fields in which checkpoints of one merge may differ."""


@dataclass(frozen=True)
class MergeInput:
    """What is recorded of a merged checkpoint.

    Args:
        source (`str`): its id on the Hub, or `./` and the name of its folder.
        revision (`str` or `None`): its commit on the Hub.
        step (`int` or `None`): training step, from `trainer_state.json` or the folder's name.
        sha256 (`str`): content hash of its tensors.
    """

    source: str
    revision: str | None
    step: int | None
    sha256: str

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def open_inputs(
    checkpoints: Sequence[str | os.PathLike[str]], *, base: str | os.PathLike[str] | None = None
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """Open the checkpoints of a merge, and its base, and check that they belong together.

    Raises:
        ValueError: if there are fewer than two, or if they differ in architecture, vocabulary, shapes or dtypes.
        FileNotFoundError: if one is not there.
    """
    if isinstance(checkpoints, str | os.PathLike) or len(checkpoints) < 2:
        raise ValueError(f"A merge needs at least two checkpoints, not {checkpoints!r}.")
    opened = [open_checkpoint(checkpoint) for checkpoint in checkpoints]
    origin = None if base is None else open_checkpoint(base)
    first = opened[0]
    for other in opened[1:] + ([origin] if origin else []):
        _check_configs(first, other)
        _check_tensors(first, other)
    return opened, origin


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse NaN and infinities; hashes every tensor on the way, while it is in memory.

    Raises:
        ValueError: naming the checkpoint and the tensor.
    """
    for name, tensor in checkpoint.tensors():
        refuse_non_finite(f"{name} of {checkpoint.source.name}", tensor)
        checkpoint.digest(name)


def describe_input(checkpoint: Checkpoint) -> MergeInput:
    """Return what is recorded of a checkpoint; reads what has not been hashed yet."""
    return MergeInput(
        source=public_name(checkpoint.source.name),
        revision=checkpoint.source.revision,
        step=training_step(checkpoint),
        sha256=checkpoint.content_hash(),
    )


def training_step(checkpoint: Checkpoint) -> int | None:
    """Return the step at which a checkpoint was saved, if its folder tells."""
    state = checkpoint.folder / "trainer_state.json"
    if state.is_file():
        return int(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    name = checkpoint.folder.name
    if checkpoint.source.repo_id is not None:  # the commit says nothing; the revision that was typed may ("step1000")
        name = checkpoint.source.name.partition("@")[2]
    number = re.search(r"(\d+)$", name)
    return int(number[1]) if number else None


def check_order(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints of one trajectory that are not listed from the oldest to the latest.

    Raises:
        ValueError: naming the first two that are not in order.
    """
    for earlier, later in pairwise(checkpoints):
        before, after = training_step(earlier), training_step(later)
        if before is not None and after is not None and before >= after:
            raise ValueError(
                f"{earlier.source.name} (step {before}) is listed before {later.source.name} (step {after}); "
                "list the checkpoints from the oldest to the latest."
            )


def _check_configs(first: Checkpoint, other: Checkpoint) -> None:
    names = f"{first.source.name} and {other.source.name}"
    if first.config.model_type != other.config.model_type:
        kinds = f"{first.config.model_type} against {other.config.model_type}"
        raise ValueError(f"{names} are of different architectures ({kinds}); merge checkpoints of one model.")
    one, two = _fields(first), _fields(other)
    if one.get("vocab_size") != two.get("vocab_size"):
        raise ValueError(
            f"{names} have vocabularies of {one.get('vocab_size')} and {two.get('vocab_size')} entries, so rows of "
            "their embeddings stand for different tokens; give them one vocabulary first."
        )
    for field in sorted(one.keys() | two.keys()):
        if one.get(field) != two.get(field):
            raise ValueError(f"{names} differ in {field} ({one.get(field)} against {two.get(field)}).")


def _fields(checkpoint: Checkpoint) -> Mapping[str, Any]:
    fields = checkpoint.config.to_dict()
    return {name: value for name, value in fields.items() if name not in NOT_IN_THE_FORWARD_PASS}


def _check_tensors(first: Checkpoint, other: Checkpoint) -> None:
    for name, spec in first.specs.items():
        if name in other.specs and spec.dtype != other.specs[name].dtype:
            raise ValueError(
                f"{name} is {spec} in {first.source.name} and {other.specs[name]} in {other.source.name}; "
                "save both in one dtype."
            )
    other.check_specs(first.specs)
