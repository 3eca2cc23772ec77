"""A growth proves itself: a tiny model of the family, grown by the same operators, must keep its logits."""

import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, describe, logits_of, named_state, random_model, sample_tokens
from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.planning.exactness import means_exact
from hf_warmscale.resize.planning.request import Growth, GrowthRequest, Read, plan_growth
from hf_warmscale.resize.planning.target import at_own_base, is_mup

TOLERANCE = 1e-11
"""An exact growth moves a logit by about 1e-15 of the largest one; an error was never seen below 1e-7."""


def obstacle(growth: Growth) -> str | None:
    """Return why a growth whose operators are exact is not, on this family; `None` if it is proved to be.

    The proof runs on the tiny model that `describe` proved its map on, with every axis that grows doubled.

    Args:
        growth (`Growth`): of a model of any size; `None` is returned too if its operators move the logits anyway.
    """
    if not means_exact(growth.plan):
        return None
    source, target, request = growth.plan.source, growth.plan.target, growth.request
    grown = tuple(
        axis for axis in source.fields if axis not in source.derived and source.sizes[axis] != target.sizes[axis]
    )
    tiny = json.dumps(source.proved_on.to_dict(), default=str)
    try:
        error = _error_of_doubling(tiny, grown, request.width, request.depth, request.snr_db)
    except ValueError as refusal:
        return f"no tiny {source.model_type} model can be grown like this to prove it ({refusal})"
    if error <= TOLERANCE:
        return None
    return f"a tiny {source.model_type} model grown like this moves a logit by {error:.1g} of the largest"


@lru_cache(maxsize=64)
def _error_of_doubling(
    config: str, axes: tuple[Axis, ...], width: WidthName, depth: DepthOperator, snr_db: float | None
) -> float:
    """Return max |change of a logit| / max |logit| of a small model whose `axes` are doubled, in float64."""
    values = json.loads(config)
    tiny = CONFIG_MAPPING[values["model_type"]].from_dict({**values, "dtype": "float64"})
    source = random_model(at_own_base(tiny) if is_mup(tiny) else tiny)
    sizes = describe(source.config).sizes
    request = GrowthRequest({axis: 2 * sizes[axis] for axis in axes}, width, depth, snr_db)
    growth = plan_growth(source.config, request, torch.float64)
    return logit_change(source, type(tiny).from_dict(growth.config.to_dict()), growth.tensor)


def logit_change(source: PreTrainedModel, config: PreTrainedConfig, make: Callable[[str, Read], Tensor]) -> float:
    """Return max |change of a logit| / max |logit| from a small model to what is made of it, in float64.

    Args:
        source (`PreTrainedModel`): the small model.
        config (`PreTrainedConfig`): of the other.
        make (`Callable`): gives a tensor of the other by its name, from a reader of the source's.
    """
    target, weights = random_model(config), named_state(source)
    with torch.no_grad():
        for name, tensor in named_state(target).items():
            tensor.copy_(make(name, weights.__getitem__))
    tokens = sample_tokens(describe(source.config).sizes[Axis.VOCAB])
    before, after = logits_of(source, tokens), logits_of(target, tokens)
    return float((after[..., : before.shape[-1]] - before).abs().max() / before.abs().max())
