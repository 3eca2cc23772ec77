"""The two ways to realise the rule table: Granite's own multipliers, or all of them folded into init and optimizer."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from hf_warmscale.architecture import describe
from hf_warmscale.mup.folded_form import folded_scalings
from hf_warmscale.mup.granite_form import GraniteForm, is_mup, refuse_stale_multipliers
from hf_warmscale.mup.parameter_scaling import ParameterScaling
from hf_warmscale.mup.rules import Parametrization


@dataclass(frozen=True)
class Realization:
    """How one model realises the rules.

    Args:
        parametrization (`Parametrization`): the rules and the tuned constants.
        scalings (`dict[str, ParameterScaling]`): every parameter, by its name in the plain model.
        forward (`dict[str, float]`): the config fields that hold forward multipliers; empty where all are folded.
    """

    parametrization: Parametrization
    scalings: dict[str, ParameterScaling]
    forward: dict[str, float]


def realize(
    config: PreTrainedConfig,
    base_config: PreTrainedConfig | None = None,
    parametrization: Parametrization | None = None,
) -> Realization:
    """Return how a model of `config` realises muP.

    Args:
        config (`PreTrainedConfig`): of the model. A `mup` entry holds its base and its constants.
        base_config (`PreTrainedConfig`, *optional*): the tuned model of the same family; for every other config.
        parametrization (`Parametrization`, *optional*): with `base_config`; by default CompleteP.

    Raises:
        ValueError: if neither or both are there, or they do not fit (see [`folded_scalings`]), or the config's
            multipliers do not follow from its entry.
    """
    if is_mup(config):
        if base_config is not None or parametrization is not None:
            raise ValueError("The config has a mup entry with its own base shape; leave out the base config.")
        # Only now: a size may have been assigned since the config was made.
        refuse_stale_multipliers(config)
        form = GraniteForm.from_config(config)
        return Realization(form.parametrization, form.scalings(), form.forward_multipliers())
    if base_config is None:
        raise ValueError(
            f"The {config.model_type} config has no mup entry; give base_config, the config of the tuned model."
        )
    parametrization = parametrization or Parametrization()
    scalings = folded_scalings(describe(config), describe(base_config), parametrization)
    return Realization(parametrization, scalings, {})


def config_of(model: nn.Module) -> PreTrainedConfig:
    """Return the config of a model, also inside DDP or a DeepSpeed engine.

    Raises:
        ValueError: if it has none.
    """
    while not isinstance(config := getattr(model, "config", None), PreTrainedConfig):
        inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise ValueError(f"The model {type(model).__name__} has no config; pass a transformers model.")
        model = inner
    return config
