"""Parameter groups for `torch.optim.Muon`: the matrices of the blocks at muP's rates, all else for AdamW."""

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hf_warmscale.architecture import ModelMap, ParameterMap, describe
from hf_warmscale.mup.groups import group_by_factors
from hf_warmscale.mup.parameter_scaling import ParameterScaling, find_scaling, plain_name
from hf_warmscale.mup.realization import config_of, realize
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization, Ratios, rule_table

Groups = list[dict[str, Any]]
Shape = tuple[float, ...]


def muon_param_groups(
    model: nn.Module,
    *,
    lr: float,
    adamw_lr: float,
    weight_decay: float = 0.0,
    adamw_weight_decay: float = 0.0,
    eps: float = 1e-7,
    adamw_eps: float = 1e-8,
    adjust_lr_fn: str | None = None,
    base_config: PreTrainedConfig | None = None,
    parametrization: Parametrization | None = None,
) -> tuple[Groups, Groups]:
    """Build the groups of a `torch.optim.Muon`, and those of an AdamW for all other parameters.

    Muon gets the two-dimensional matrices inside the blocks. Their rate scales by sqrt(m_out / m_in), as the spectral
    norm of the weights does (arXiv:2310.17813). torch's Muon also multiplies the rate by a factor of the matrix's own
    shape; the groups divide by the ratio of that factor to the base's, so that the Muon columns of [`mup_table`] hold
    for the update that is made. Embeddings, readout, gains, biases, packed experts and adapters stay with AdamW.

    Args:
        model (`nn.Module`): as for [`mup_param_groups`].
        lr, weight_decay, eps (`float`): of Muon, tuned at the base shape.
        adamw_lr, adamw_weight_decay, adamw_eps (`float`): of AdamW, tuned at the base shape.
        adjust_lr_fn (`str`, *optional*): the argument of the same name that Muon gets.
        base_config (`PreTrainedConfig`, *optional*): the model that was tuned; not for a [`MupForCausalLM`].
        parametrization (`Parametrization`, *optional*): with `base_config`; by default CompleteP.

    Returns:
        `tuple[list[dict], list[dict]]`: the groups of Muon and of AdamW, as [`mup_param_groups`] makes them.

    Raises:
        ValueError: as [`mup_param_groups`].

    Example:

    ```python
    >>> muon, adamw = muon_param_groups(model, lr=0.02, adamw_lr=1e-2)
    >>> optimizers = torch.optim.Muon(muon), torch.optim.AdamW(adamw)
    ```
    """
    config = config_of(model)
    realization, described = realize(config, base_config, parametrization), describe(config)
    muon: list[tuple[nn.Parameter, str, OptimizerFactors]] = []
    adamw: list[tuple[nn.Parameter, str, OptimizerFactors]] = []
    for name, parameter, scaling in _trainable(model, realization.scalings):
        place = described.parameters.get(plain_name(name))
        if place is not None and is_for_muon(place):
            own = muon_factors(place, described, scaling, realization.parametrization, adjust_lr_fn)
            muon.append((parameter, scaling.role, own))
        else:
            adamw.append((parameter, scaling.role, scaling.factors(realization.parametrization)))
    return (
        group_by_factors(muon, lr=lr, weight_decay=weight_decay, eps=eps),
        group_by_factors(adamw, lr=adamw_lr, weight_decay=adamw_weight_decay, eps=adamw_eps),
    )


def is_for_muon(place: ParameterMap) -> bool:
    """Tell whether Muon may move a parameter: a matrix inside a block that is neither a table nor a readout."""
    # Packed experts, [experts, out, in], fall out by their number of dimensions: torch's Muon takes 2-D matrices only.
    return rule_table()[place.role].muon_lr is not None and place.layer is not None and len(place.dimensions) == 2


def muon_factors(
    place: ParameterMap,
    model: ModelMap,
    scaling: ParameterScaling,
    parametrization: Parametrization,
    adjust_lr_fn: str | None = None,
) -> OptimizerFactors:
    """Return the factors under `torch.optim.Muon`, its own shape factor taken out relative to the base."""
    wanted = parametrization.muon_factors(scaling.role, scaling.ratios).absorb(scaling.absorbed)
    shape = place.shape(model.sizes)
    # The ratios as the rule sees them: under `standard` the base has the model's own shape and the quotient is 1.
    base = _base_shape(place, shape, scaling.ratios.seen_by(parametrization.rule))
    own = muon_shape_factor(shape, adjust_lr_fn) / muon_shape_factor(base, adjust_lr_fn)
    # torch decays by `lr * weight_decay` without its factor, so their product stays what it was.
    return replace(wanted, lr=wanted.lr / own, weight_decay=wanted.weight_decay * own)


def muon_shape_factor(shape: Shape, adjust_lr_fn: str | None) -> float:
    """Return what `torch.optim.Muon` itself multiplies the rate of a matrix by.

    Args:
        shape (`tuple[float, ...]`): rows and columns, as stored.
        adjust_lr_fn (`str` or `None`): `"original"` (also `None`) or `"match_rms_adamw"`.

    Example:

    ```python
    >>> muon_shape_factor((1024, 256), None), muon_shape_factor((256, 1024), None)
    (2.0, 1.0)
    ```
    """
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * sqrt(max(rows, columns))
    return sqrt(max(1.0, rows / columns))


def _base_shape(place: ParameterMap, shape: Shape, ratios: Ratios) -> Shape:
    base = list(map(float, shape))
    for dimension, ratio in ((place.fan_in, ratios.fan_in), (place.fan_out, ratios.fan_out)):
        # The shape may be fractional (a base of another proportion); only quotients of its sides are used.
        if dimension is not None:
            base[dimension] /= ratio
    return tuple(base)


def _trainable(
    model: nn.Module, scalings: dict[str, ParameterScaling]
) -> Iterator[tuple[str, nn.Parameter, ParameterScaling]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, find_scaling(scalings, name)
