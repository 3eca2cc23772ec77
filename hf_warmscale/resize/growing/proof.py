"""A growth proves itself: a tiny model of the family, grown by the same operators, must keep its logits."""

import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, ModelMap, describe, logits_of, named_state, random_model, sample_tokens
from hf_warmscale.compat.transformers import short_scans
from hf_warmscale.mup import is_mup
from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.growing.experts import NUM_EXPERTS_PER_TOKEN, Upcycling, experts_config, plan_upcycling
from hf_warmscale.resize.planning.plan import Read
from hf_warmscale.resize.planning.request import Growth, GrowthRequest, plan_growth
from hf_warmscale.resize.planning.target import at_own_base

TOLERANCE = 1e-11
"""An exact growth moves a logit by about 1e-15 of the largest one; an inexact one by at least 1e-7 in all families."""


def inexact_because(growth: Growth | Upcycling) -> str | None:
    """Return why a growth whose operators are meant to keep the logits moves them; `None` if it is proved exact.

    The proof runs on the tiny model on which `describe` proved its map, with every axis that grows doubled.

    Args:
        growth (`Growth` or `Upcycling`): of a model of any size. `None` is returned, too, if its operators are not
            meant to keep the logits.
    """
    if isinstance(growth, Growth):
        return _growth_moves_logits(growth)
    first = _growth_moves_logits(growth.growth) if isinstance(growth.growth, Growth) else None
    return first or _experts_move_logits(growth.dense)


def _growth_moves_logits(growth: Growth) -> str | None:
    if not growth.plan.means_exact():
        return None
    source, target, request = growth.plan.source, growth.plan.target, growth.request
    grown = tuple(
        axis for axis in source.fields if axis not in source.derived and source.sizes[axis] != target.sizes[axis]
    )
    try:
        error = _error_of_doubling(_as_key(source), grown, request.width, request.depth, request.snr_db)
    except ValueError as refusal:
        return f"no tiny {source.model_type} model can be grown like this to prove it ({refusal})"
    if error <= TOLERANCE:
        return None
    return f"a tiny {source.model_type} model grown like this moves a logit by {error:.1g} of the largest"


def _experts_move_logits(dense: ModelMap) -> str | None:
    error = _error_of_experts(_as_key(dense))
    if error <= TOLERANCE:
        return None
    return f"a tiny {dense.model_type} model made a mixture moves a logit by {error:.1g} of the largest"


def _as_key(described: ModelMap) -> str:
    """Return the config of the tiny model in a form that can be hashed."""
    return json.dumps(described.proved_on.to_dict(), default=str)


def _tiny_config(key: str) -> PreTrainedConfig:
    values = json.loads(key)
    return CONFIG_MAPPING[values["model_type"]].from_dict({**values, "dtype": "float64"})


@lru_cache(maxsize=64)
def _error_of_doubling(
    tiny: str, axes: tuple[Axis, ...], width: WidthName, depth: DepthOperator, snr_db: float | None
) -> float:
    """Return max |change of a logit| / max |logit| of a tiny model whose `axes` are doubled, in float64."""
    config = _tiny_config(tiny)
    source = random_model(at_own_base(config) if is_mup(config) else config)
    sizes = describe(source.config).sizes
    request = GrowthRequest({axis: 2 * sizes[axis] for axis in axes}, width, depth, snr_db)
    growth = plan_growth(source.config, request, torch.float64)
    return logit_change(source, type(config).from_dict(growth.config.to_dict()), growth.tensor)


@lru_cache(maxsize=16)
def _error_of_experts(tiny: str) -> float:
    """Return max |change of a logit| / max |logit| of a tiny dense model that becomes a mixture, in float64."""
    config = _tiny_config(tiny)
    mixture = experts_config(config, 2 * NUM_EXPERTS_PER_TOKEN, NUM_EXPERTS_PER_TOKEN)
    return logit_change(random_model(config), mixture, plan_upcycling(config, mixture, None, 0, None).tensor)


def logit_change(source: PreTrainedModel, config: PreTrainedConfig, make: Callable[[str, Read], Tensor]) -> float:
    """Return max |change of a logit| / max |logit| between a tiny model and the model made from it, in float64.

    Args:
        source (`PreTrainedModel`): the tiny model.
        config (`PreTrainedConfig`): of the other.
        make (`Callable`): returns a tensor of the other by its name, from a reader of the source's.
    """
    # Random, so that a parameter that the growth forgets to write shows in the logits.
    target, weights = random_model(config), named_state(source)
    with torch.no_grad():
        for name, tensor in named_state(target).items():
            tensor.copy_(make(name, weights.__getitem__))
    tokens = sample_tokens(describe(source.config).sizes[Axis.VOCAB])
    with short_scans(config):
        before, after = logits_of(source, tokens), logits_of(target, tokens)
    return float((after[..., : before.shape[-1]] - before).abs().max() / before.abs().max())
