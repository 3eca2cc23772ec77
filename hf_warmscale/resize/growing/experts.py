"""Turn a dense model into a mixture of experts, every expert a copy of its MLP (sparse upcycling, arXiv:2212.05055).

The weights of the chosen experts sum to 1, so that equal experts give what the one MLP gave. The router is random:
experts come apart as they see other tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MixtralConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from hf_warmscale.architecture import ModelMap, describe, random_model
from hf_warmscale.resize.growing.proof import TOLERANCE, logit_change
from hf_warmscale.resize.planning.init_std import DEFAULT_RANGE
from hf_warmscale.resize.planning.request import Growth, Read
from hf_warmscale.resize.planning.transfer import generator

TARGETS: Mapping[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (MixtralConfig, {"sliding_window": None}),
    "mistral": (MixtralConfig, {}),
    "qwen2": (Qwen2MoeConfig, {"norm_topk_prob": True, "qkv_bias": True}),
    "qwen3": (Qwen3MoeConfig, {"norm_topk_prob": True}),
}
"""For each dense family the mixture whose blocks differ in the MLP alone, and what makes it exact."""

OF_THE_FAMILY = ("model_type", "architectures", "auto_map", "transformers_version")
"""Entries of a config that do not go over."""


NUM_EXPERTS_PER_TOKEN = 2
"""As Mixtral has it."""


@dataclass(frozen=True)
class Upcycling:
    """A dense Llama or Mistral becomes a Mixtral, a Qwen2 or Qwen3 a Qwen-MoE, perhaps after it grew.

    Args:
        dense (`ModelMap`): what every block's MLP is copied from: the source, or what it grows to first.
        target (`ModelMap`): the mixture.
        config (`PreTrainedConfig`): of the mixture.
        growth (`Growth` or `None`): how the dense model follows from the source, if it is another.
        seed (`int`): of the router.
        std (`float`): of the router.
        dtype (`torch.dtype` or `None`): of the weights; `None` keeps the source's.
    """

    dense: ModelMap
    target: ModelMap
    config: PreTrainedConfig
    growth: Growth | None
    seed: int
    std: float
    dtype: torch.dtype | None

    @property
    def source(self) -> ModelMap:
        """The source."""
        return self.dense if self.growth is None else self.growth.source

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the tensors of the source that a tensor of the mixture is made of; of a router its MLP's first."""
        parts = (name,) if name in self.dense.parameters else _mlp_parts(name)
        return parts if self.growth is None else tuple(self.growth.parts(part)[0] for part in parts)

    def tensor(self, name: str, read: Read) -> Tensor:
        """Return a tensor of the mixture.

        Args:
            name (`str`): its name.
            read (`Callable[[str], Tensor]`): gives a tensor of the source.
        """
        if name in self.dense.parameters:
            return self._dense(name, read)
        shape = self.target.parameters[name].shape(self.target.sizes)
        if ".mlp.experts." in name:
            return torch.cat([self._dense(part, read) for part in _mlp_parts(name)]).expand(shape).clone()
        dtype = self.dtype or read(self.parts(name)[0]).dtype
        if name.endswith("shared_expert.down_proj.weight"):  # an expert for all tokens that says nothing at first
            return torch.zeros(shape, dtype=dtype)
        return (self.std * torch.randn(shape, generator=generator(f"{self.seed}:{name}"))).to(dtype)

    def _dense(self, name: str, read: Read) -> Tensor:
        if self.growth is not None:
            return self.growth.tensor(name, read)
        tensor = read(name)
        return tensor.to(self.dtype or tensor.dtype)


def _mlp_parts(name: str) -> tuple[str, ...]:
    """Return the dense weights that a weight of experts is made of."""
    block, _, part = name.rpartition(".mlp.")
    kinds = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}.get(part, ("gate",))
    return tuple(f"{block}.mlp.{kind}_proj.weight" for kind in kinds)


def plan_upcycling(
    config: PreTrainedConfig, mixture: PreTrainedConfig, growth: Growth | None, seed: int, dtype: torch.dtype | None
) -> Upcycling:
    """Return how a dense model, perhaps grown first, becomes a mixture.

    Raises:
        ValueError: if the dense model has a weight that the mixture has not.
    """
    dense, target = describe(config), describe(mixture)
    lost = [name for name in dense.parameters if name not in target.parameters and not is_expert(name)]
    if lost:
        raise ValueError(
            f"A {mixture.model_type} model has no {min(lost)}, which the {config.model_type} model has, so it cannot "
            "become one."
        )
    std = float(config.to_dict().get("initializer_range") or DEFAULT_RANGE)
    return Upcycling(dense, target, mixture, growth, seed, std, dtype)


def is_expert(name: str) -> bool:
    """Tell whether a dense weight goes into every expert."""
    return ".mlp." in name and name.endswith("weight")


def experts_config(config: PreTrainedConfig, num_experts: int, num_experts_per_tok: int) -> PreTrainedConfig:
    """Return the config of the mixture.

    Raises:
        ValueError: if the family has no mixture of its form, or there are fewer experts than a token goes to.
    """
    if config.model_type not in TARGETS:
        raise ValueError(
            f"A {config.model_type} model cannot become a mixture of experts; {', '.join(TARGETS)} models can."
        )
    if not isinstance(num_experts, int) or isinstance(num_experts, bool):
        raise ValueError(f"num_experts is {num_experts!r}; it must be a positive whole number.")
    if not 1 <= num_experts_per_tok <= num_experts:
        raise ValueError(f"A token cannot go to {num_experts_per_tok} of {num_experts} experts; take more experts.")
    family, own = TARGETS[config.model_type]
    values = {name: value for name, value in config.to_dict().items() if name not in OF_THE_FAMILY}
    inner = values["intermediate_size"]
    sizes = {
        "num_local_experts": num_experts,
        "num_experts": num_experts,
        "num_experts_per_tok": num_experts_per_tok,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    known = family().to_dict()
    return family.from_dict({**values, **{name: size for name, size in sizes.items() if name in known}, **own})


def experts_obstacle(growth: Upcycling) -> str | None:
    """Return why a mixture does not compute what its dense source does; `None` if a tiny one proves that it does."""
    error = _error_of_experts(json.dumps(growth.dense.proved_on.to_dict(), default=str))
    if error <= TOLERANCE:
        return None
    return f"a tiny {growth.dense.model_type} model made a mixture moves a logit by {error:.1g} of the largest"


@lru_cache(maxsize=16)
def _error_of_experts(config: str) -> float:
    """Return max |change of a logit| / max |logit| of a small dense model that becomes a mixture, in float64."""
    values = json.loads(config)
    tiny = CONFIG_MAPPING[values["model_type"]].from_dict({**values, "dtype": "float64"})
    mixture = experts_config(tiny, 2 * NUM_EXPERTS_PER_TOKEN, NUM_EXPERTS_PER_TOKEN)
    return logit_change(random_model(tiny), mixture, plan_upcycling(tiny, mixture, None, 0, None).tensor)
