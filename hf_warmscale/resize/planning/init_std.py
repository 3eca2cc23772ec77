"""The standard deviation of the target's muP init: what `szp` adds to every matrix."""

from collections.abc import Mapping

from transformers import GraniteConfig, PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap, ParameterMap, Role
from hf_warmscale.mup import Parametrization, Ratios
from hf_warmscale.mup.granite_form import GraniteForm

MATRICES: tuple[Role, ...] = ("embedding", "hidden", "readout", "router")
"""The roles of the parameters that `szp` shrinks and perturbs; vectors keep their values."""

DEFAULT_RANGE = 0.02
"""For the few families whose config has no `initializer_range`."""


def mup_init_std(config: GraniteConfig, target: ModelMap) -> dict[str, float]:
    """Return the init of every matrix of a target that has a muP entry.

    Args:
        config (`GraniteConfig`): of the target; in Granite's form.
        target (`ModelMap`): the target.
    """
    form = GraniteForm.from_config(config)
    scalings = form.scalings()
    return {
        parameter.name: _sigma(config) * scalings[parameter.name].factors(form.parametrization).init
        for parameter in target.with_role(*MATRICES)
    }


def own_base_init_std(
    config: PreTrainedConfig, source: ModelMap, target: ModelMap, carried: Mapping[Role, float]
) -> dict[str, float]:
    """Return the init of every matrix of a target whose source has no muP metadata and so is its own base shape.

    Args:
        config (`PreTrainedConfig`): of the target; sigma is its `initializer_range`.
        source (`ModelMap`): the base shape.
        target (`ModelMap`): the target.
        carried (`Mapping[str, float]`): by role, the forward multipliers that the weights hold instead of the config.
    """
    std = {}
    for parameter in target.with_role(*MATRICES):
        scaled = Parametrization(rule="mup").factors(parameter.role, _ratios(parameter, source, target))
        std[parameter.name] = _sigma(config) * scaled.init * carried.get(parameter.role, 1.0)
    return std


def _sigma(config: PreTrainedConfig) -> float:
    return float(config.to_dict().get("initializer_range") or DEFAULT_RANGE)


def _ratios(parameter: ParameterMap, base: ModelMap, target: ModelMap) -> Ratios:
    def growth(dim: int | None) -> float:
        if dim is None:
            return 1.0
        return parameter.shape(target.sizes)[dim] / parameter.shape(base.sizes)[dim]

    width = target.sizes[Axis.HIDDEN] / base.sizes[Axis.HIDDEN]
    return Ratios(width=width, fan_in=growth(parameter.fan_in), fan_out=growth(parameter.fan_out))
