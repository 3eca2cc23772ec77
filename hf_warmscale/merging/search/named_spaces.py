"""The spaces that are asked for by name: what each of them reads, and its box."""

import os
from collections.abc import Mapping, Sequence

import torch

from hf_warmscale.architecture import describe
from hf_warmscale.merging.inputs import check_order
from hf_warmscale.merging.search.spaces import (
    AdapterSpace,
    GroupSpace,
    PairSpace,
    SimplexSpace,
    Space,
    TrajectorySpace,
)
from hf_warmscale.merging.sources import CheckpointSource, MergeSource
from hf_warmscale.options import SPACES, SpaceName


def open_source(
    checkpoints: Sequence[str | os.PathLike[str]], space: SpaceName | Space, device: torch.device
) -> MergeSource:
    """Open what a space merges.

    Args:
        checkpoints (`Sequence[str | PathLike]`): checkpoints, or adapters.
        space (`str` or `Space`): the space or its name.
        device (`torch.device`): of the live model.

    Raises:
        ValueError: if they do not belong together, or are not in the order or of the number that the space needs.
        FileNotFoundError: if one is not there.
    """
    if isinstance(space, str) and space not in SPACES:
        raise ValueError(f"The space {space!r} is unknown; choose one of {', '.join(SPACES)}.")
    if space == "lora" or isinstance(space, AdapterSpace):
        from hf_warmscale.merging.lora import AdapterSource  # peft takes seconds to import

        return AdapterSource(checkpoints, device)
    source = CheckpointSource(checkpoints, device)
    if space in ("pair", "trajectory") or isinstance(space, PairSpace | TrajectorySpace):
        check_order(source.checkpoints)
    if (space == "pair" or isinstance(space, PairSpace)) and len(source) != 2:
        raise ValueError(f"The space 'pair' merges two checkpoints, not {len(source)}; use 'trajectory' or 'simplex'.")
    return source


def make_space(space: SpaceName | Space, source: MergeSource) -> Space:
    """Return the box of a name, for what `open_source` opened; a box as it is.

    Raises:
        ValueError: if a box was made for another number of checkpoints.
    """
    count = len(source)
    if not isinstance(space, str):
        weights = space.weights({name: side.low for name, side in space.ranges.items()})
        weighed = len(next(iter(weights.values())) if isinstance(weights, Mapping) else weights)
        if weighed != count:
            raise ValueError(f"{space!r} gives {weighed} weights for {count} checkpoints; make it for {count}.")
        return space
    if space == "pair":
        return PairSpace()
    if space == "trajectory":
        return TrajectorySpace(count)
    if space == "simplex":
        return SimplexSpace(count)
    if space == "groups":
        return GroupSpace(describe(source.model.config), count)
    return AdapterSpace(count)
