"""Turn a dense model into a mixture of experts, every expert a copy of its MLP (sparse upcycling, arXiv:2212.05055).

The routing weights of the chosen experts sum to 1, so equal experts compute what the one MLP computed. The router is
random: experts become different because they see different tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from hf_warmscale.architecture import ModelMap, describe
from hf_warmscale.keyed_random import keyed_generator
from hf_warmscale.resize.planning.init_std import DEFAULT_RANGE
from hf_warmscale.resize.planning.plan import Read, WeightPlan

TARGETS: Mapping[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (MixtralConfig, {"sliding_window": None}),
    "mistral": (MixtralConfig, {}),
    "qwen2": (Qwen2MoeConfig, {"norm_topk_prob": True, "qkv_bias": True}),
    "qwen3": (Qwen3MoeConfig, {"norm_topk_prob": True}),
}
"""For each dense family, the mixture whose blocks differ in the MLP alone, and the settings that make it exact."""

OF_THE_FAMILY = ("model_type", "architectures", "auto_map", "transformers_version")
"""Entries of a config that belong to the family and are not taken over."""

NUM_EXPERTS_PER_TOKEN = 2
"""As in Mixtral."""


@dataclass(frozen=True)
class Upcycling:
    """A dense model as a mixture of experts: Llama and Mistral become Mixtral, Qwen2 and Qwen3 their MoE families.

    Args:
        dense (`ModelMap`): the model whose MLPs are copied: the source, or the model that it grows to first.
        target (`ModelMap`): the mixture.
        config (`PreTrainedConfig`): of the mixture.
        growth (`WeightPlan` or `None`): how the dense model follows from the source, if it grows first.
        seed (`int`): of the router.
        std (`float`): of the router.
        dtype (`torch.dtype` or `None`): of the weights; `None` keeps the source's.
    """

    dense: ModelMap
    target: ModelMap
    config: PreTrainedConfig
    growth: WeightPlan | None
    seed: int
    std: float
    dtype: torch.dtype | None

    @property
    def source(self) -> ModelMap:
        """Return the source."""
        return self.dense if self.growth is None else self.growth.source

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the source tensors that a tensor of the mixture is made of; for a router, the first of its MLP."""
        parts = (name,) if name in self.dense.parameters else _mlp_parts(name)
        return parts if self.growth is None else tuple(self.growth.parts(part)[0] for part in parts)

    def tensor(self, name: str, read: Read) -> Tensor:
        """Return a tensor of the mixture.

        Args:
            name (`str`): its name.
            read (`Callable[[str], Tensor]`): returns a tensor of the source.
        """
        if name in self.dense.parameters:
            return self._dense(name, read)
        shape = self.target.parameters[name].shape(self.target.sizes)
        if ".mlp.experts." in name:
            # `[out, in]` to `[experts, out, in]`, the rows of gate before those of up. The clone gives each expert
            # memory of its own.
            return torch.cat([self._dense(part, read) for part in _mlp_parts(name)]).expand(shape).clone()
        dtype = self.dtype or read(self.parts(name)[0]).dtype
        if name.endswith("shared_expert.down_proj.weight"):  # the shared expert; its down projection starts at zero
            return torch.zeros(shape, dtype=dtype)
        return (self.std * torch.randn(shape, generator=keyed_generator(f"{self.seed}:{name}"))).to(dtype)

    def _dense(self, name: str, read: Read) -> Tensor:
        if self.growth is not None:
            return self.growth.tensor(name, read)
        tensor = read(name)
        return tensor.to(self.dtype or tensor.dtype)


def _mlp_parts(name: str) -> tuple[str, ...]:
    """Return the dense weights that a weight of the experts is made of."""
    block, _, part = name.rpartition(".mlp.")
    kinds = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}.get(part, ("gate",))
    return tuple(f"{block}.mlp.{kind}_proj.weight" for kind in kinds)


def plan_upcycling(
    config: PreTrainedConfig,
    mixture: PreTrainedConfig,
    growth: WeightPlan | None,
    seed: int,
    dtype: torch.dtype | None,
) -> Upcycling:
    """Return how a dense model, perhaps grown first, becomes a mixture.

    Raises:
        ValueError: if the dense model has a weight that the mixture lacks.
    """
    dense, target = describe(config), describe(mixture)
    lost = [name for name in dense.parameters if name not in target.parameters and not is_expert(name)]
    if lost:
        raise ValueError(
            f"This {config.model_type} model cannot become a {mixture.model_type} model, which has no {min(lost)}."
        )
    std = float(config.to_dict().get("initializer_range") or DEFAULT_RANGE)
    return Upcycling(dense, target, mixture, growth, seed, std, dtype)


def is_expert(name: str) -> bool:
    """Tell whether a dense weight goes into every expert."""
    return ".mlp." in name and name.endswith("weight")


def experts_config(config: PreTrainedConfig, num_experts: int, num_experts_per_tok: int) -> PreTrainedConfig:
    """Return the config of the mixture.

    Raises:
        ValueError: if no mixture of the family's form exists, or there are fewer experts than a token goes to.
    """
    if config.model_type not in TARGETS:
        raise ValueError(
            f"A {config.model_type} model cannot become a mixture of experts; {', '.join(TARGETS)} models can."
        )
    if not isinstance(num_experts, int) or isinstance(num_experts, bool):
        raise ValueError(f"num_experts is {num_experts!r}; it must be a positive whole number.")
    if not 1 <= num_experts_per_tok <= num_experts:
        raise ValueError(
            f"num_experts is {num_experts}, but each token goes to {num_experts_per_tok}; choose more experts."
        )
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
