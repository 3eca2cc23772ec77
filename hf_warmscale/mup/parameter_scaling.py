"""How one parameter scales: its role and its size ratios, which is all that the rules read."""

import re
from dataclasses import dataclass, replace

from hf_warmscale.architecture.model_map import Role
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization, Ratios

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ADAPTER_PARTS = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)(?=\.)")
LORA = re.compile(r"\.lora_(?:embedding_)?(?P<side>[AB])\.[^.]+(?:\.weight)?$")


@dataclass(frozen=True)
class ParameterScaling:
    """The role of a parameter, its sizes relative to the base, and the forward multiplier that it has absorbed.

    Args:
        role (`Role`): of the parameter.
        ratios (`Ratios`): its sizes relative to the base model.
        absorbed (`float`): the forward multiplier that the stored weight carries, see [`OptimizerFactors.absorb`]; 1
            if the forward pass applies it.
        in_block (`bool`): whether it is inside a block, where the depth matters.
        zero_init (`bool`): whether an option initialises it to 0.
    """

    role: Role
    ratios: Ratios
    absorbed: float = 1.0
    in_block: bool = False
    zero_init: bool = False

    def factors(self, parametrization: Parametrization) -> OptimizerFactors:
        """Return the AdamW factors of the parameter."""
        return parametrization.factors(self.role, self.ratios).absorb(self.absorbed)

    def lora(self, side: str) -> "ParameterScaling":
        """Return the scaling of a LoRA factor of this parameter.

        `"A"` has the parameter's own fan-in. `"B"` has the rank as its fan-in, which does not grow, so B keeps the
        base rate and moves m_N times as fast as A (as in arXiv:2402.12354).
        """
        # The product s B A is added to the stored weight, which carries `absorbed`. One factor of the product has to
        # carry it as well: B does, so that A trains as in a model whose forward pass applies the multiplier.
        if side == "A":
            return replace(self, absorbed=1.0)
        return replace(self, role="hidden", ratios=replace(self.ratios, fan_in=1.0))


def plain_name(name: str) -> str:
    """Return a parameter's name in the plain model, without the prefixes of DDP, FSDP, `torch.compile` and peft.

    Example:

    ```python
    >>> plain_name("module.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    ```
    """
    # The order matters: the wrappers may stand before, between and after DDP's `module.` and peft's prefix.
    name = WRAPPERS.sub("", name).removeprefix("module.")
    return ADAPTER_PARTS.sub("", name.removeprefix("base_model.model."))


def find_scaling(scalings: dict[str, ParameterScaling], name: str) -> ParameterScaling:
    """Return the scaling of a parameter by its name, whatever wraps the model.

    Raises:
        ValueError: if the model that was described has no such parameter.
    """
    plain = plain_name(name)
    if plain in scalings:
        return scalings[plain]
    # An adapter is not in the model that was described; it takes its scaling from the weight that it adapts.
    lora = LORA.search(plain)
    if lora is not None and (base := f"{plain[: lora.start()]}.weight") in scalings:
        return scalings[base].lora(lora["side"])
    raise ValueError(
        f"The muP rules do not cover the parameter {name}; freeze it, or train it with an optimizer of its own."
    )
