"""Where a parameter stands: what the rules need to know of it, without its shape."""

import re
from dataclasses import dataclass, replace

from hf_warmscale.architecture.model_map import Role
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization, Ratios

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ADAPTER_PARTS = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)(?=\.)")
LORA = re.compile(r"\.lora_(?:embedding_)?(?P<side>[AB])\.[^.]+(?:\.weight)?$")


@dataclass(frozen=True)
class ParameterScaling:
    """The role of a parameter, its sizes relative to the base, and what it took over from the forward pass.

    Args:
        role (`Role`): what it is for.
        ratios (`Ratios`): its sizes relative to the base model.
        absorbed (`float`): the factor that the stored weight carries instead of the forward pass (see
            [`OptimizerFactors.absorb`]); 1 where the forward pass multiplies.
        in_block (`bool`): it is inside a block, where the depth counts.
        zero_init (`bool`): it starts at 0 by option.
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
        """Return the scaling of a LoRA factor of this parameter: `"A"` reads what it reads, `"B"` reads the rank.

        The rank does not grow, so B moves at the base rate, m_N times as fast as A (as in arXiv:2402.12354).
        """
        if side == "A":
            return replace(self, absorbed=1.0)
        return replace(self, role="hidden", ratios=replace(self.ratios, fan_in=1.0))


def plain_name(name: str) -> str:
    """Return a parameter's name in the plain model: without what DDP, FSDP, `torch.compile` and peft put in it.

    Example:

    ```python
    >>> plain_name("module.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    ```
    """
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
    lora = LORA.search(plain)
    if lora is not None and (base := f"{plain[: lora.start()]}.weight") in scalings:
        return scalings[base].lora(lora["side"])
    raise ValueError(
        f"The parameter {name} is not one that the muP rules describe; freeze it, or train it with its own optimizer."
    )
