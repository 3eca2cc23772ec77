"""One of the models that are used together: how to run it, and which inputs it takes."""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_warmscale.compat.peft import without_adapter
from hf_warmscale.compat.transformers import CACHE_ARGUMENT
from hf_warmscale.decoding.configuration import EmulatedFineTuningConfig

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Member:
    """A causal language model, or one with its adapter switched off.

    Args:
        role (`str`): what messages call it: `base`, `tuned`, `reference`.
        model (`PreTrainedModel` or `PeftModel`): the live model.
        adapter (`bool`): run it with its adapter, if it has one.

    Raises:
        ValueError: if it is not a causal language model, or its weights are not in memory.
    """

    role: str
    model: nn.Module
    adapter: bool = True

    def __post_init__(self) -> None:
        _refuse_what_is_no_decoder(self.role, self.plain)
        offloaded = getattr(self.plain, "hf_device_map", None) is not None
        if not offloaded and any(parameter.is_meta for parameter in self.plain.parameters()):
            raise ValueError(
                f"The {self.role} model has parameters on the meta device, which hold no values; load its weights."
            )
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"The {self.role} model has a {self.model.active_peft_config.peft_type.value} adapter, which adds "
                "tokens to the prompt; use an adapter of weights, such as LoRA."
            )

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The model of transformers: what an adapter sits on, or the model itself."""
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The config of the text decoder."""
        return self.plain.config.get_text_config(decoder=True)

    @property
    def rows(self) -> int:
        """The number of logits, padding of the vocabulary included."""
        return int(self.config.vocab_size)

    @cached_property
    def window(self) -> int | None:
        """The longest sequence in tokens, or `None` if the config names none."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.plain.device

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return logits `[batch, kept, rows]`.

        Args:
            inputs (`Mapping`): `input_ids` `[batch, tokens]`; `logits_to_keep`, the last positions (0 for all) or
                indices of positions; `attention_mask`, `position_ids`, `use_cache`, a cache. What the model does not
                take is left out.
        """
        device = self.device  # asked for once: transformers goes through the parameters for it
        known = {name: _on(device, value) for name, value in inputs.items() if name in self._arguments}
        with self.as_member():
            logits: Tensor = self.model(**known).logits
        return logits if "logits_to_keep" in self._arguments else _keep(logits, inputs["logits_to_keep"])

    def as_member(self) -> AbstractContextManager[None]:
        """Return a context in which the model's adapter is on or off, as this member wants it."""
        if isinstance(self.model, PeftModel) and not self.adapter:
            return without_adapter(self.model)
        return nullcontext()

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for this model alone.

        Raises:
            ValueError: if it keeps its states in a cache of its own kind.
        """
        if not self.takes_cache:
            raise ValueError(
                f"The {self.role} model is a {type(self.plain).__name__}, which does not keep its states in the cache "
                "of transformers; generate with use_cache=False."
            )
        return DynamicCache(config=self.config)

    @property
    def takes_cache(self) -> bool:
        """Whether it keeps its states in the cache of transformers."""
        return CACHE_ARGUMENT in self._arguments

    @cached_property
    def num_cache_layers(self) -> int:
        """The layers of its cache."""
        return len(self.new_cache().layers)

    @cached_property
    def _arguments(self) -> frozenset[str]:
        # Of the plain model: peft hides its arguments behind `**kwargs`.
        return frozenset(inspect.signature(self.plain.forward).parameters)


def beside(scores: Tensor, other: PreTrainedModel) -> Tensor:
    """Return scores on the device of another model, cast first where that device may not have their dtype.

    Not every device has float64, and beside a narrower model nothing is gained by it.

    Args:
        scores (`Tensor`): logits or log-probabilities, in float32 at least if their precision matters.
        other (`PreTrainedModel`): the model with which they are compared or combined.
    """
    if scores.device == other.device:
        return scores
    kept = scores.dtype != torch.float64 or other.dtype == torch.float64
    return (scores if kept else scores.float()).to(other.device)


def positions_in(mask: Tensor) -> Tensor:
    """Return the position of each token of an attention mask `[batch, tokens]`: padding on the left takes none."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _refuse_what_is_no_decoder(role: str, model: nn.Module) -> None:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"The {role} model is a {type(model).__name__}; pass a causal language model of transformers."
        )
    if isinstance(model.config, EmulatedFineTuningConfig):
        raise ValueError(f"The {role} model is itself a combination of models; use one of its members.")
    if _encodes(model.config) or not model.can_generate():
        raise ValueError(
            f"The {role} model is a {type(model).__name__}, which does not predict the next token; use a decoder."
        )


def refuse_no_decoder(name: str, config: PreTrainedConfig) -> None:
    """Refuse a stored model that cannot be a member, before its weights are read.

    Raises:
        ValueError: if it is not a causal language model, or is itself a combination.
    """
    if isinstance(config, EmulatedFineTuningConfig):
        raise ValueError(f"{name} is itself a combination of models; name one of its members.")
    if _encodes(config) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name} holds a {config.model_type} model, which does not predict the next token; use a decoder."
        )


def _encodes(config: PreTrainedConfig) -> bool:
    # A BERT that is loaded as a causal model without `is_decoder` attends to later tokens.
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True)
    return bool(config.is_encoder_decoder or encoder)


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _keep(logits: Tensor, kept: int | Tensor) -> Tensor:
    # The last positions; 0 keeps all of them.
    return logits[:, kept.to(logits.device)] if isinstance(kept, Tensor) else logits[:, -kept or None :]
