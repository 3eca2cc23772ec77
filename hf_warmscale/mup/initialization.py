"""Initialise any family's causal LM in muP, every multiplier folded into the weights."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import NormMap, ParameterMap, describe
from hf_warmscale.mup.folded_form import folded_scalings
from hf_warmscale.mup.granite_form import is_mup
from hf_warmscale.mup.rules import Parametrization

MATRICES = ("embedding", "hidden", "readout", "router")


@torch.no_grad()
def init_mup(
    model: PreTrainedModel,
    *,
    base_config: PreTrainedConfig,
    parametrization: Parametrization | None = None,
    std: float | None = None,
) -> PreTrainedModel:
    """Initialise every weight of a model in place by muP: N(0, std) matrices, gains, zero biases.

    The model keeps its own forward pass. Train it with `mup_param_groups(model, base_config=base_config, lr=...)`. At
    the base shape the weights are those that a family with a N(0, std) init draws from the same random state.

    Args:
        model (`PreTrainedModel`): a causal LM of any family that [`describe`] knows, whole and on its device (not
            under ZeRO-3, nor on meta).
        base_config (`PreTrainedConfig`): the config of the model that was tuned, of the same family.
        parametrization (`Parametrization`, *optional*): by default CompleteP.
        std (`float`, *optional*): of the matrices at the base shape; by default the config's `initializer_range`.

    Returns:
        `PreTrainedModel`: the same model.

    Raises:
        ValueError: if the base does not fit, an option does not exist for the family, there is no `std`, or a weight
            is not there as a whole.

    Example:

    ```python
    >>> model = init_mup(AutoModelForCausalLM.from_config(config), base_config=base_config)
    ```
    """
    if is_mup(model.config):
        raise ValueError("The model has a mup entry in its config and is initialised by it; build it anew instead.")
    _refuse_absent(model)
    parametrization = parametrization or Parametrization()
    described = describe(model.config)
    scalings = folded_scalings(described, describe(base_config), parametrization)
    sigma = std if std is not None else model.config.to_dict().get("initializer_range")
    if sigma is None:
        raise ValueError(f"The {model.config.model_type} config has no initializer_range; give std.")
    for name, parameter in model.named_parameters():
        place = described.parameters[name]
        factor = scalings[name].factors(parametrization).init
        if scalings[name].zero_init:
            nn.init.zeros_(parameter)
        elif place.role in MATRICES:
            nn.init.normal_(parameter, mean=0.0, std=sigma * factor)
            # After the draw, as `nn.Embedding` does, so that the random stream is the family's own.
            _zero_padding(model.get_submodule(place.module))
        else:
            nn.init.constant_(parameter, _vector(place, described.norms, factor))
    return model


def _refuse_absent(model: PreTrainedModel) -> None:
    """Refuse weights that are on meta, or that ZeRO-3 has taken away and left empty."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.numel() == 0:
            where = "on the meta device" if parameter.is_meta else "partitioned by ZeRO-3"
            raise ValueError(f"{name} is {where}; call init_mup on the whole model, before it is sharded.")


def _vector(place: ParameterMap, norms: Mapping[str, NormMap], factor: float) -> float:
    if place.role == "bias":
        return 0.0
    # Where a family computes with 1 + w, the gain that must equal `factor` is 1 + w. Training needs no such care: lr
    # and eps scale w as they scale the gain, and gains are not decayed.
    return factor - (norms[place.module].gain_offset if place.module in norms else 0.0)


def _zero_padding(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
