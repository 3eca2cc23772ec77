"""Low-rank adapters of one base, merged exactly: through their products, not through their factors."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import (
    ModelWeights,
    ModelWriter,
    content_hash,
    copy_side_files,
    load_model,
    load_tokenizer,
    open_checkpoint,
    public_name,
    refuse_non_finite,
)
from hf_warmscale.checkpoints.files import ADAPTER_CONFIG, ADAPTER_FILE
from hf_warmscale.compat.peft import LowRankLayer, low_rank_layers, read_lora_config, scaled_product, switch_off
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.inputs import MergeInput, check_finite, check_tokenizers, describe_input

NO_PRODUCT = (
    "alora_invocation_tokens",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Settings with which an adapter is more than the product `s B A`."""
BASE_UNTOUCHED = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base unchanged; the others (PiSSA, OLoRA, LoftQ, ...) subtract a part of it."""


class AdapterSource:
    """LoRA adapters of one base model; a merge is `W + sum_i w_i s_i B_i A_i` in every adapted layer.

    This is exact, like peft's `cat`; peft's `linear` sums the factors and gets cross terms.

    Args:
        adapters (`Sequence[str | PathLike]`): adapter folders.
        device (`torch.device`): of the live model.

    Raises:
        ValueError: if they have different bases or tokenizers, or are more than a low-rank product.
        FileNotFoundError: if one does not exist.
    """

    kind = "adapter"

    def __init__(self, adapters: Sequence[str | os.PathLike[str]], device: torch.device) -> None:
        if isinstance(adapters, str | os.PathLike) or len(adapters) < 2:
            raise ValueError(f"A merge needs at least two adapters, not {adapters!r}.")
        self.folders = [Path(adapter) for adapter in adapters]
        configs = [_read_config(folder) for folder in self.folders]
        bases = {str(config.base_model_name_or_path) for config in configs}
        if len(bases) > 1:
            raise ValueError(f"The adapters have different bases ({', '.join(sorted(bases))}); merge those of one.")
        (base,) = bases
        self.span: tuple[int | None, int | None] = (None, None)
        self.stored = ModelWeights(open_checkpoint(base))
        check_tokenizers({base: self.stored.checkpoint.folder, **{str(folder): folder for folder in self.folders}})
        self.model: PreTrainedModel = load_model(self.stored.checkpoint.folder, finite=False)
        # peft wraps the layers of `self.model` in place, so the unwrapped model sees the adapted layers.
        self._add_adapters(base).to(device)
        self._layers = low_rank_layers(self.model)
        for layer in self._layers.values():
            switch_off(layer)  # merges are written into the base weights
        # The adapter changes one use of the tied weight; a merge into the weight would change both.
        for tied, name in self.model.all_tied_weights_keys.items():
            if {_module(tied), _module(name)} & self._layers.keys():
                raise ValueError(
                    f"An adapter changes {_module(name)}, whose weight is tied to {tied}; untie them first."
                )

    def __len__(self) -> int:
        return len(self.folders)

    def check(self) -> list[MergeInput]:
        """Read the base and every adapter once: refuse NaN, and return the record of each adapter.

        Raises:
            ValueError: naming the folder and the tensor that holds NaN or an infinity.
        """
        check_finite(self.stored.checkpoint)
        inputs = []
        for folder in self.folders:
            tensors = _load(folder / ADAPTER_FILE)
            for name, tensor in tensors.items():
                refuse_non_finite(f"{name} of {folder}", tensor)
            inputs.append(MergeInput(public_name(folder), revision=None, step=None, sha256=content_hash(tensors)))
        return inputs

    def base(self) -> MergeInput:
        """Return the record of the base."""
        return describe_input(self.stored.checkpoint)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the base."""
        return load_tokenizer(self.stored.checkpoint.folder)

    def combine(self, weights: CheckpointWeights) -> None:
        """Overwrite the live model with a merge."""
        with torch.no_grad():
            for name, layer in self._layers.items():
                self.model.get_parameter(f"{name}.base_layer.weight").copy_(self._merged(name, layer, weights))

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        """Write a merge as a stock model into an existing folder."""
        checkpoint = self.stored.checkpoint
        copy_side_files(checkpoint.folder, folder)
        checkpoint.config.save_pretrained(folder)
        merged = {f"{name}.weight": (name, layer) for name, layer in self._layers.items()}
        with (
            torch.no_grad(),
            ModelWriter(folder, self.stored.model, self.stored.specs, max_shard_size=max_shard_size) as writer,
        ):
            for name, tensor in self.stored.tensors():
                # Summed in float32 and rounded once, to the stored dtype.
                value = self._merged(*merged[name], weights).to("cpu", tensor.dtype) if name in merged else tensor
                writer.write(name, value)

    def _add_adapters(self, base: str) -> PeftModel:
        try:
            wrapped = PeftModel.from_pretrained(self.model, str(self.folders[0]), adapter_name=_name(0))
            for index, folder in enumerate(self.folders[1:], start=1):
                wrapped.load_adapter(str(folder), adapter_name=_name(index))
        except (RuntimeError, TypeError, ValueError) as error:  # other shapes, or a setting of another type
            raise ValueError(f"An adapter does not fit the layers of {base}; name adapters of this base.") from error
        return wrapped

    def _merged(self, name: str, layer: LowRankLayer, weights: CheckpointWeights) -> Tensor:
        assert not isinstance(weights, Mapping)  # one weight per adapter, whatever the parameter
        # From the stored base, not from the live weight, which holds the merge of the trial before.
        total = self.stored.tensor(f"{name}.weight").to(torch.float32)
        for index, weight in enumerate(weights):
            product = scaled_product(layer, _name(index)) if weight else None
            if product is not None:
                # Not in place: of a float32 checkpoint `total` is still the stored tensor.
                total = total + weight * product.to(total)
        return total


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}); copy the adapter again.") from error


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _name(index: int) -> str:
    return f"adapter_{index}"


def _read_config(folder: Path) -> LoraConfig:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_CONFIG}; name folders of LoRA adapters.")
    if not (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_FILE}; save the adapter again.")
    _load(folder / ADAPTER_FILE)  # a corrupt file is refused before the base is loaded
    config = read_lora_config(folder)
    for setting in NO_PRODUCT:
        if getattr(config, setting, None):  # older versions of peft lack some
            raise ValueError(
                f"{folder} has {setting} set, so it is more than a low-rank product; merge it into its base first."
            )
    if config.bias != "none" or config.init_lora_weights not in BASE_UNTOUCHED:
        raise ValueError(
            f"{folder} changes its base in other ways too (bias={config.bias!r}, init_lora_weights="
            f"{config.init_lora_weights!r}); merge it into its base first."
        )
    return config
