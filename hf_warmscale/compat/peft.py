"""What this package needs of peft beyond its public API; a test of each function says what broke."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import Embedding, Linear, LoraLayer
from torch import Tensor, nn

LowRankLayer = Linear | Embedding
"""The layers whose adapters are a plain product of two factors."""


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the adapted layers of a model by name.

    Raises:
        ValueError: if one is not a plain low-rank product.
    """
    layers: dict[str, LowRankLayer] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LowRankLayer):
            layers[name] = layer
        elif isinstance(layer, LoraLayer):
            raise ValueError(f"The adapted layer {name} is a {type(layer).__name__}; merge it into its base first.")
    return layers


def scaled_product(layer: LowRankLayer, adapter: str) -> Tensor | None:
    """Return `s B A` in the shape of the layer's weight; `None` if the adapter does not touch this layer."""
    return layer.get_delta_weight(adapter) if adapter in layer.scaling else None


def switch_off(layer: LowRankLayer) -> None:
    """Let a layer compute with its base weight alone, whatever adapters it has."""
    layer.enable_adapters(False)


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """Run a model with its adapters off inside the block, and leave every weight as trainable as it was.

    `disable_adapter` alone makes every active adapter trainable as it ends, also one that was frozen.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read the config of an adapter of any type.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # peft raises what the damage happens to cause: KeyError, TypeError, ...
        raise ValueError(f"The adapter_config.json of {folder} is damaged; save the adapter again.") from error
    return config


def read_lora_config(folder: Path) -> LoraConfig:
    """Read the config of a LoRA adapter.

    Raises:
        ValueError: if the file is damaged, or the adapter is of another type.
    """
    config = read_adapter_config(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} is an adapter of type {config.peft_type}; only LoRA adapters can be merged.")
    return config
