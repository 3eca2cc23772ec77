"""The sink on disk: the grown weights are written one tensor at a time."""

from pathlib import Path

import torch
from tqdm import tqdm

from hf_warmscale.checkpoints import ModelWriter, TensorSpec, skeleton
from hf_warmscale.resize.model_source import ModelSource
from hf_warmscale.resize.planning.plan import WeightPlan


def write_weights(
    growth: WeightPlan, source: ModelSource, folder: Path, *, dtype: torch.dtype | None, max_shard_size: int | str
) -> None:
    """Write the weights of a growth into a folder, in the layout of `save_pretrained`.

    Args:
        growth (`WeightPlan`): the growth.
        source (`ModelSource`): the source's weights.
        folder (`Path`): an existing folder.
        dtype (`torch.dtype`, *optional*): of all weights; by default each keeps the dtype of its source.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.
    """
    first = {name: growth.parts(name)[0] for name in growth.target.parameters}
    specs = {
        name: TensorSpec(parameter.shape(growth.target.sizes), dtype or source.specs[first[name]].dtype)
        for name, parameter in growth.target.parameters.items()
    }
    place = {name: index for index, name in enumerate(source.specs)}
    with ModelWriter(folder, skeleton(growth.config), specs, max_shard_size=max_shard_size) as writer:
        # In the order of the source, so that a tensor with several copies is read once.
        for name in tqdm(sorted(first, key=lambda name: place[first[name]]), desc="growing", leave=False):
            writer.write(name, growth.tensor(name, source.read))
