"""A growth proves itself: a tiny model of the family, grown by the same operators, must keep its logits."""

import json
from functools import lru_cache

import torch
from transformers import CONFIG_MAPPING

from hf_warmscale.architecture import Axis, describe, logits_of, named_state, random_model, sample_tokens
from hf_warmscale.resize.engine import transfer_tensor
from hf_warmscale.resize.exactness import means_exact
from hf_warmscale.resize.layer_map import DepthOperator
from hf_warmscale.resize.operators import WidthName
from hf_warmscale.resize.request import Growth, GrowthRequest, plan_growth
from hf_warmscale.resize.target import at_own_base, is_mup

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
    grown, weights = random_model(type(tiny).from_dict(growth.config.to_dict())), named_state(source)
    with torch.no_grad():
        for name, tensor in named_state(grown).items():
            transfer = growth.plan.transfer(name)
            before = weights[transfer.source]
            tensor.copy_(transfer_tensor(transfer, before, key=growth.key(name), dtype=tensor.dtype))
    tokens = sample_tokens(sizes[Axis.VOCAB])
    logits, after = logits_of(source, tokens), logits_of(grown, tokens)
    return float((after[..., : logits.shape[-1]] - logits).abs().max() / logits.abs().max())
