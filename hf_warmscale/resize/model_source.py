"""The model that is grown or shrunk, live or stored: its config and its weights, one at a time."""

import os
from collections.abc import Mapping
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import describe
from hf_warmscale.checkpoints import (
    ModelWeights,
    TensorSpec,
    content_hash,
    open_checkpoint,
    public_name,
    refuse_non_finite,
)
from hf_warmscale.resize.planning.target import embedding_buffer, stored_embedding_factor


class ModelSource(Protocol):
    """A source of weights.

    Attributes:
        name (`str`): its name in receipts, never a path.
        config (`PreTrainedConfig`): of the model.
        specs (`Mapping[str, TensorSpec]`): the shape and dtype of every weight, by its name in the model.
        location (`str`): where the files of its tokenizer are looked for; empty if it was built in memory.
    """

    name: str
    location: str
    config: PreTrainedConfig
    specs: Mapping[str, TensorSpec]

    def read(self, name: str) -> Tensor:
        """Return a weight, on the CPU.

        Raises:
            ValueError: if it holds NaN or an infinity.
        """
        ...

    def content_hash(self) -> str:
        """Return the SHA-256 over the names, shapes, dtypes and data of all weights."""
        ...

    def embedding_factor(self, dtype: torch.dtype) -> float | None:
        """Return the factor on the embedding if the family keeps it in a buffer; `dtype` is that of the model."""
        ...

    @property
    def model(self) -> PreTrainedModel:
        """Return the live model; a stored one is loaded now, in the widest dtype of its weights."""
        ...

    @property
    def generation_config(self) -> GenerationConfig | None:
        """Return the generation config, if there is one."""
        ...


def find_model(source: str | os.PathLike[str] | PreTrainedModel) -> "LiveModel | StoredModel":
    """Return the model behind the argument of a user.

    Raises:
        ValueError: if a stored model is quantized or incomplete, or a live one holds adapters or packed weights.
        FileNotFoundError: if there is no such model.
    """
    return LiveModel(source) if isinstance(source, PreTrainedModel) else StoredModel(source)


def own_dtype(specs: Mapping[str, TensorSpec]) -> torch.dtype:
    """Return the dtype of the first weight, which transformers calls the dtype of the model."""
    return next(iter(specs.values())).dtype


def widest_dtype(specs: Mapping[str, TensorSpec]) -> torch.dtype:
    """Return the narrowest dtype that holds all weights without rounding."""
    return reduce(torch.promote_types, (spec.dtype for spec in specs.values() if spec.dtype.is_floating_point))


class LiveModel:
    """A model in memory, on any device; it is not changed. See [`ModelSource`].

    Args:
        model (`PreTrainedModel`): the model.

    Raises:
        ValueError: if a weight is missing, packed, or of another shape than the config says.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.config = model, model.config
        self.location = model.config.name_or_path or ""
        self.name = public_name(self.location) if self.location else type(model).__name__
        self._state = model.state_dict()
        self.specs: Mapping[str, TensorSpec] = self._checked_specs()
        self._finite = set[str]()

    def read(self, name: str) -> Tensor:
        weight: Tensor = self._state[name].cpu()
        if name not in self._finite:
            refuse_non_finite(name, weight)
            self._finite.add(name)
        return weight

    def content_hash(self) -> str:
        return content_hash({name: self.read(name) for name in self.specs})

    def embedding_factor(self, dtype: torch.dtype) -> float | None:
        factor = embedding_buffer(self.model)
        return None if factor is None else float(factor)

    @property
    def generation_config(self) -> GenerationConfig | None:
        return self.model.generation_config

    def _checked_specs(self) -> dict[str, TensorSpec]:
        described = describe(self.config)
        specs = {}
        for name, parameter in described.parameters.items():
            if name not in self._state:
                raise ValueError(f"The live model has no {name}; merge and unload its adapters, or name its folder.")
            spec, shape = TensorSpec.of(self._state[name]), parameter.shape(described.sizes)
            if spec.shape != shape or not spec.dtype.is_floating_point:
                raise ValueError(
                    f"{name} of the live model is {spec.dtype} of shape {spec.shape}, not floating point of shape "
                    f"{shape}; dequantize or gather the model first, or name its folder."
                )
            specs[name] = spec
        return specs


class StoredModel:
    """A model in a folder or on the Hub, `id@revision` too, read one weight at a time. See [`ModelSource`].

    Args:
        source (`str` or `PathLike`): the folder or the Hub id.

    Raises:
        ValueError: if it is quantized or incomplete.
        FileNotFoundError: if there is no such model.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        # from_pretrained would fill missing weights with random numbers; ModelWeights refuses them.
        self.weights = ModelWeights(open_checkpoint(source))
        self.checkpoint = self.weights.checkpoint
        self.name, self.config, self.specs = (
            self.checkpoint.source.identity,
            self.checkpoint.config,
            self.weights.specs,
        )
        self.location = str(self.checkpoint.folder)
        self._finite = set[str]()

    def read(self, name: str) -> Tensor:
        tensor = self.weights.tensor(name)
        # Once per tensor: one with several copies is read for each of them.
        if name not in self._finite:
            refuse_non_finite(name, tensor)
            for stored in self.weights.sources(name):
                self.checkpoint.digest(stored)  # now, while the pages are in memory
            self._finite.add(name)
        return tensor

    def content_hash(self) -> str:
        return self.checkpoint.content_hash()

    def embedding_factor(self, dtype: torch.dtype) -> float | None:
        return stored_embedding_factor(self.config, dtype)

    @cached_property
    def model(self) -> PreTrainedModel:
        dtype = widest_dtype(self.specs)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.folder, dtype=dtype, trust_remote_code=False
        )
        return model

    @cached_property
    def generation_config(self) -> GenerationConfig | None:
        if not (self.checkpoint.folder / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(self.checkpoint.folder)
