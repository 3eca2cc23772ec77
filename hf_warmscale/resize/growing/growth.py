"""Plan what is asked of a growth, which makes experts where a dense model is asked for `num_experts`."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, describe, find_field
from hf_warmscale.resize.growing.experts import NUM_EXPERTS_PER_TOKEN, Upcycling, experts_config, plan_upcycling
from hf_warmscale.resize.planning.request import Growth, GrowthRequest, plan_growth


def plan_target(
    config: PreTrainedConfig, request: GrowthRequest, dtype: torch.dtype, embedding_factor: float | None = None
) -> Growth | Upcycling:
    """Return the plan of a growth, which makes experts where a dense model is asked for `num_experts`.

    Args:
        config (`PreTrainedConfig`): of the source.
        request (`GrowthRequest`): what is asked.
        dtype (`torch.dtype`): of the target's weights.
        embedding_factor (`float`, *optional*): see `plan_growth`.

    Raises:
        ValueError: if the request cannot be met; see `grow_from_pretrained`.
    """
    experts = request.sizes.get(Axis.EXPERTS)
    if experts is None or find_field(config, Axis.EXPERTS) is not None:
        return plan_growth(config, request, dtype, embedding_factor)
    experts_config(config, experts, NUM_EXPERTS_PER_TOKEN)  # refuses the family before anything else
    others = _other_sizes(config, request.sizes)
    growth = plan_growth(config, replace(request, sizes=others), dtype, embedding_factor) if others else None
    dense = config if growth is None else growth.config
    mixture = experts_config(dense, experts, NUM_EXPERTS_PER_TOKEN)
    if request.dtype is not None:
        mixture.dtype = request.dtype
    return plan_upcycling(dense, mixture, growth, request.seed, request.dtype)


def _other_sizes(config: PreTrainedConfig, sizes: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the sizes that are asked for beside the experts and are not the source's own."""
    own = {str(axis): size for axis, size in describe(config).sizes.items()}
    named = {name: size for name, size in sizes.items() if name != Axis.EXPERTS and size is not None}
    return {name: size for name, size in named.items() if size != own.get(name)}
