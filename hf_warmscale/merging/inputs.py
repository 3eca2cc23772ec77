"""The checkpoints of a merge: opened, compared, put in order, and named for the record."""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints import (
    Checkpoint,
    ModelWeights,
    checkpoint_step,
    find_tokenizer,
    open_checkpoint,
    public_name,
    read_stage,
    read_trainer_state,
    refuse_non_finite,
    require_one_language,
    total_tokens,
)
from hf_warmscale.checkpoints.portable import portable

TRAINING_ONLY = re.compile(
    r"_name_or_path|architectures|auto_map|(torch_)?dtype|transformers_version|quantization_config|tokenizer_class"
    r"|.*use_cache|return_dict|output_(attentions|hidden_states|router_logits)|.*_token_ids?"
    r"|.*dropout.*|.*pdrop.*|.*layerdrop.*|.*drop_(rate|path).*|.*initializer_(range|factor)|.*init_std"
    r"|.*(aux|z)_loss_(coef|coeff|weight)|router_jitter_noise"
    r"|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|chunk_size_feed_forward"
)
"""Config fields that the forward pass of a language model in evaluation mode does not read."""
TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "merges.txt", "added_tokens.json", "*.model", "*.tiktoken")
STEP_NAME = re.compile(r"(?:.*[-_])?step[-_]?(\d+)(?:[-_].*)?")
"""A revision or folder that is named by its step: `step1000`, `stage1-step1000-tokens4B`."""


@dataclass(frozen=True)
class MergeInput:
    """The record of a merged checkpoint.

    Args:
        source (`str`): its Hub id, or `./` and the name of its folder.
        revision (`str` or `None`): its commit on the Hub.
        step (`int` or `None`): its training step, from `trainer_state.json` or the name of the folder.
        sha256 (`str`): content hash of its tensors.

    Example:

    ```python
    >>> MergeInput("org/model", revision="3f2a", step=1000, sha256="00ff").to_dict()["step"]
    1000
    ```
    """

    source: str
    revision: str | None
    step: int | None
    sha256: str

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read a record; version 0.1.0 wrote the path of a folder where its name stands now."""
        return cls(**{**content, "source": portable(content["source"])})

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def named_sources(inputs: Sequence[MergeInput], base: MergeInput | None) -> str:
    """Return the names of the merged checkpoints and of the base for a sentence."""
    names = ", ".join(dict.fromkeys(f"`{each.source}`" for each in inputs))
    return f"{names}, on the base `{base.source}`" if base else names


def open_inputs(
    checkpoints: Sequence[str | os.PathLike[str]], *, base: str | os.PathLike[str] | None = None
) -> tuple[list[ModelWeights], ModelWeights | None]:
    """Open the checkpoints of a merge, and its base, and check that their weights can be added.

    They are read by the names of the live model, so a tied head that one file stores and another does not, packed or
    separate experts, renamed tensors and stored buffers make no difference.

    Raises:
        ValueError: if there are fewer than two, if one is quantized, or if they differ in architecture, vocabulary,
            tokenizer, shapes or dtypes.
        FileNotFoundError: if one does not exist.
    """
    if isinstance(checkpoints, str | os.PathLike) or len(checkpoints) < 2:
        raise ValueError(f"A merge needs at least two checkpoints, not {checkpoints!r}.")
    opened = [open_checkpoint(checkpoint) for checkpoint in checkpoints]
    origin = None if base is None else open_checkpoint(base)
    everything = [*opened, *([origin] if origin else [])]
    # Configs first: they are read in milliseconds, while `ModelWeights` builds the skeleton of each model.
    for other in everything[1:]:
        _check_families(everything[0], other)
    weights = [ModelWeights(checkpoint) for checkpoint in everything]
    for each in weights[1:]:
        _check_configs(weights[0], each)
        _check_tensors(weights[0], each)
    check_tokenizers({checkpoint.source.name: checkpoint.folder for checkpoint in everything})
    if not _tokenizer_files(opened[-1].folder) and any(_tokenizer_files(each.folder) for each in everything):
        warnings.warn(f"{opened[-1].source.name}, the last, has no tokenizer, so the merge has none.", stacklevel=3)
    return weights[: len(opened)], weights[-1] if origin else None


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse NaN and infinities; hash every tensor on the way, while it is in memory.

    Raises:
        ValueError: naming the checkpoint and the tensor.
    """
    for name, tensor in checkpoint.tensors():
        refuse_non_finite(f"{name} of {checkpoint.source.name}", tensor)
        checkpoint.digest(name)


def check_tokenizers(folders: Mapping[str, Path]) -> None:
    """Refuse tokenizers that give an id to different tokens; warn of tokens that only some of them have.

    Embedding tables are padded, so two tokenizers may share a size and yet disagree. Folders without a tokenizer are
    passed over; those whose tokenizer files are equal, as in the checkpoints of one run, are loaded once.

    Args:
        folders (`Mapping[str, Path]`): by the name to use in error messages.

    Raises:
        ValueError: naming the first token that they disagree on.
    """
    different: dict[tuple[str, ...], tuple[str, Path]] = {}
    for name, folder in folders.items():
        files = _tokenizer_files(folder)
        if files:
            # By the names and the hashes of the files: the checkpoints of one run carry equal tokenizers.
            different.setdefault(
                tuple(f"{each.name} {sha256(each.read_bytes()).hexdigest()}" for each in files), (name, folder)
            )
    if len(different) > 1:
        tokenizers = {name: find_tokenizer(folder) for name, folder in different.values()}
        for remark in require_one_language(tokenizers):
            warnings.warn(remark, stacklevel=4)


def describe_input(checkpoint: Checkpoint) -> MergeInput:
    """Return the record of a checkpoint; tensors that have not been hashed yet are read."""
    return MergeInput(
        source=public_name(checkpoint.source.name),
        revision=checkpoint.source.revision,
        step=training_step(checkpoint),
        sha256=checkpoint.content_hash(),
    )


def training_step(checkpoint: Checkpoint) -> int | None:
    """Return the step at which a checkpoint was saved, if its state or its name tells.

    Only `checkpoint-<step>` and `step<step>` count: the number in `tuned-v2` is not a step.
    """
    state = read_trainer_state(checkpoint.folder)
    if state is not None:
        return int(state["global_step"])
    name = checkpoint.folder.name
    if checkpoint.source.repo_id is not None:  # the folder is named by the commit; the typed revision may be a step
        name = checkpoint.source.name.partition("@")[2]
    step = checkpoint_step(name)
    if step is not None:
        return step
    named = STEP_NAME.fullmatch(name)
    return int(named[1]) if named else None


def positions(first: Checkpoint, second: Checkpoint) -> tuple[int | None, int | None, str]:
    """Return where two checkpoints are on their common trajectory, in steps or in tokens, and the unit.

    Both are `None` where nothing says that they have a common trajectory: the steps of two runs (two seeds, say) do
    not order their checkpoints. Steps are counted anew in every stage, so across the stages of a lineage tokens are
    compared.
    """
    # One parent folder, or one Hub repository, counts as one run: `run/checkpoint-100` and `run/checkpoint-200`.
    same_run = _run_of(first) == _run_of(second)
    stages = (read_stage(first.folder), read_stage(second.folder))
    if stages[0] is None or stages[1] is None:
        return (training_step(first), training_step(second), "steps") if same_run else (None, None, "")
    related = _continues(stages[0], stages[1]) or _continues(stages[1], stages[0])
    if not related or (_path(stages[0]) == _path(stages[1]) and not same_run):
        return None, None, ""
    return total_tokens(stages[0]), total_tokens(stages[1]), "tokens"


def check_order(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints of one trajectory that are not listed from the oldest to the latest.

    Raises:
        ValueError: naming the first two that are out of order.
    """
    for earlier, later in pairwise(checkpoints):
        before, after, unit = positions(earlier, later)
        # Checkpoints without a known place are passed over: their order is the caller's to know.
        if before is not None and after is not None and before > after:
            raise ValueError(
                f"{earlier.source.name} ({before:,} {unit}) is listed before {later.source.name} ({after:,} {unit}); "
                "list the checkpoints from the oldest to the latest."
            )


def _continues(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Tell whether a stage is another one, or comes after it, by the names of the stages in its lineage."""
    return _path(later)[: len(_path(earlier))] == _path(earlier)


def _path(stage: Mapping[str, Any]) -> list[str]:
    return [part["name"] for part in (*stage.get("lineage", []), stage)]


def _run_of(checkpoint: Checkpoint) -> str:
    return checkpoint.source.repo_id or str(checkpoint.folder.resolve().parent)


def _check_families(first: Checkpoint, other: Checkpoint) -> None:
    names = f"{first.source.name} and {other.source.name}"
    if first.config.model_type != other.config.model_type:
        families = f"{first.config.model_type} against {other.config.model_type}"
        raise ValueError(f"{names} are of different architectures ({families}); merge checkpoints of one model.")
    rows = [checkpoint.config.get_text_config().vocab_size for checkpoint in (first, other)]
    if rows[0] != rows[1]:
        raise ValueError(
            f"{names} have vocabularies of {rows[0]} and {rows[1]} entries, so rows of their embeddings stand for "
            "different tokens; give them one vocabulary first."
        )


def _check_configs(first: ModelWeights, other: ModelWeights) -> None:
    names = f"{first.checkpoint.source.name} and {other.checkpoint.source.name}"
    one, two = first.checkpoint.config, other.checkpoint.config
    for field, a, b in _differences(one, two, first.model):
        # Plain rotary angles do not depend on it; it only limits the length.
        if field == "max_position_embeddings" and _has_plain_rotary_positions(one):
            warnings.warn(
                f"{names} differ in {field} ({a} against {b}); the merge has that of the last.", stacklevel=4
            )
            continue
        raise ValueError(f"{names} differ in {field} ({a} against {b}), which changes what a model computes.")


def _differences(
    one: PreTrainedConfig, two: PreTrainedConfig, model: PreTrainedModel
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each field that the forward pass may read and that differs: dotted name and both values."""
    a, b = one.to_dict(), two.to_dict()
    for field in sorted(a.keys() | b.keys()):
        if a.get(field) == b.get(field) or TRAINING_ONLY.fullmatch(field) or not _is_read(field, one, model):
            continue
        if field == "max_window_layers" and a.get("layer_types") is not None:
            continue  # the kinds of the layers, which are compared, were made from it
        inner = (getattr(one, field, None), getattr(two, field, None))
        if isinstance(inner[0], PreTrainedConfig) and isinstance(inner[1], PreTrainedConfig):
            yield from ((f"{field}.{name}", *values) for name, *values in _differences(inner[0], inner[1], model))
        else:
            yield field, a.get(field), b.get(field)


def _is_read(field: str, config: PreTrainedConfig, model: PreTrainedModel) -> bool:
    """Tell whether a family knows a field: its config declares it, or its code mentions it.

    Tools leave notes of their own in a config (`unsloth_version`, `growth`), which no model reads.
    """
    if field in {each.name for each in fields(config)}:
        return True
    # The source is searched, because configs keep unknown keys and some families read theirs with `getattr`.
    return re.search(rf"\b{re.escape(field)}\b", inspect.getsource(sys.modules[type(model).__module__])) is not None


def _has_plain_rotary_positions(config: PreTrainedConfig) -> bool:
    """Tell whether the number of positions limits the length only: other kinds of rotary positions scale by it."""
    rotary = getattr(config.get_text_config(), "rope_parameters", None)
    return isinstance(rotary, Mapping) and rotary.get("rope_type") == "default"


def _check_tensors(first: ModelWeights, other: ModelWeights) -> None:
    for name, spec in first.specs.items():
        found = other.specs.get(name)
        if found is None or found.shape != spec.shape:
            raise ValueError(
                f"{name} is {spec} in {first.checkpoint.source.name} and {found or 'missing'} in "
                f"{other.checkpoint.source.name}; merge checkpoints of one architecture and size."
            )
        if found.dtype != spec.dtype:
            raise ValueError(
                f"{name} is {spec} in {first.checkpoint.source.name} and {found} in {other.checkpoint.source.name}; "
                "save both in one dtype."
            )


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
