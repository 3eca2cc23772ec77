"""Make the `Stage` that a configuration describes."""

from collections.abc import Mapping
from typing import Any, cast, get_args

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.arguments import ContinualTrainingArguments
from hf_warmscale.training.branching import anneal_stage
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.recipe.fields import StageArguments
from hf_warmscale.training.recipe.yaml_file import as_mapping, as_value
from hf_warmscale.training.schedules.rates import Shape
from hf_warmscale.training.stage import Stage, StageRecord


def plan_stage(
    arguments: StageArguments, training: ContinualTrainingArguments, mixture: ReplayMixture | None = None
) -> Stage:
    """Build the `Stage`; `max_steps` moves from the training arguments into it.

    Args:
        arguments (`StageArguments`): name, schedule, length and parent.
        training (`ContinualTrainingArguments`): its `max_steps` is unset, since a stage decides its own length.
        mixture (`ReplayMixture`, *optional*): what to train on.

    Raises:
        ValueError: if the fields contradict each other.
    """
    max_steps = training.max_steps if training.max_steps > 0 else None
    # Arguments that set a length beside the stage are refused, see `stage_arguments`.
    training.max_steps = -1
    max_tokens = None if arguments.max_tokens is None else int(arguments.max_tokens)
    if arguments.anneal_from is not None:
        return _plan_anneal(arguments, arguments.anneal_from, max_steps, max_tokens, mixture)
    for name in ("anneal_until", "anneal_shape"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"{name} needs a checkpoint to anneal; name it with anneal_from.")
    return Stage(
        arguments.stage,
        _schedule(arguments.schedule),
        mixture,
        max_steps=max_steps,
        max_tokens=max_tokens,
        total_batch_size=_total_batch_size(arguments.total_batch_size),
        optimizer="keep" if arguments.optimizer_state == "keep" else "reset",
        parent=arguments.parent,
    )


def _plan_anneal(
    arguments: StageArguments,
    checkpoint: str,
    max_steps: int | None,
    max_tokens: int | None,
    mixture: ReplayMixture | None,
) -> Stage:
    """Build the branch. The file describes the trunk, so `anneal_until` replaces the trunk's length.

    Of the total batches of the trunk, the one at which its checkpoint stands is that of the branch.
    """
    until, shape = arguments.anneal_until, arguments.anneal_shape
    if shape is not None:
        refuse_unknown("anneal_shape", shape, get_args(Shape))
    total_batch = None
    if arguments.total_batch_size is not None:
        record = StageRecord.load(checkpoint)
        total_batch = record.batch_sizes.at(record.progress.step)
    return anneal_stage(
        checkpoint,
        mixture,
        max_steps=max_steps if until is None else None,
        max_tokens=max_tokens if until is None else None,
        until_tokens=None if until is None else int(until),
        total_batch_size=total_batch,
        shape=cast(Shape | None, shape),
        name=f"{arguments.stage}-anneal",
    )


def _schedule(value: Mapping[str, Any] | str | None) -> dict[str, Any] | str:
    """Return the name of a schedule, or the mapping that the file or its JSON gives."""
    is_name = isinstance(value, str) and not value.lstrip().startswith("{")
    return str(value) if is_name else as_mapping("schedule", value)


def _total_batch_size(value: Any) -> Any:
    """Return the total batch or the total batches by sample; `Stage` checks the numbers."""
    value = as_value("total_batch_size", value)
    if not isinstance(value, Mapping):
        return value
    # In JSON the samples are text.
    return {int(start) if str(start).isdecimal() else start: size for start, size in value.items()}
