"""Cut a model to smaller sizes in memory: importance is measured once, for any number of cuts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap, describe
from hf_warmscale.resize.growing.receipt import CONFIG_ENTRY
from hf_warmscale.resize.model_source import ModelSource, own_dtype
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.operators import ZeroPad
from hf_warmscale.resize.planning.plan import Plan
from hf_warmscale.resize.planning.target import compensation, target_config
from hf_warmscale.resize.planning.transfer import transfer_tensor
from hf_warmscale.resize.shrinking.calibration import Calibration, calibration_tokens
from hf_warmscale.resize.shrinking.importance import Importance, measure_importance
from hf_warmscale.resize.shrinking.selection import select_blocks, select_in_block, select_shared


@dataclass(frozen=True)
class Measured:
    """A model and what its coordinates are worth.

    Args:
        source (`ModelSource`): the model.
        described (`ModelMap`): its description.
        importance (`Importance`): on the calibration text.
        tokens (`int`): tokens of the calibration text.
    """

    source: ModelSource
    described: ModelMap
    importance: Importance
    tokens: int


@dataclass(frozen=True)
class Cut:
    """A smaller model before it is built.

    Args:
        config (`PreTrainedConfig`): its config.
        tensors (`Mapping[str, Tensor]`): its weights by name.
        layers (`LayerMap`): the selected blocks.
    """

    config: PreTrainedConfig
    tensors: Mapping[str, Tensor]
    layers: LayerMap


def measure(source: ModelSource, described: ModelMap, calibration: Calibration | None) -> Measured:
    """Measure the importance of all coordinates on calibration text.

    Raises:
        ValueError: if there is no text, no tokenizer for it, or a token that the model does not have.
    """
    tokens = calibration_tokens(source.model, calibration)
    return Measured(source, described, measure_importance(source.model, described, tokens), tokens.numel())


def cut(measured: Measured, sizes: Mapping[Axis, int], dtype: torch.dtype | None = None) -> Cut:
    """Select the coordinates that matter most; the source is not changed.

    Args:
        measured (`Measured`): the source.
        sizes (`Mapping[Axis, int]`): every size of the target, none above the source's.
        dtype (`torch.dtype`, *optional*): of all weights; by default each keeps its own.

    Raises:
        ValueError: if the family cannot be shrunk to these sizes.
    """
    source, described = measured.source, measured.described
    plan, config = _plan(source, described, sizes, measured.importance, dtype)
    if (reason := plan.widths_inexact_because()) is not None:
        raise ValueError(f"This {described.model_type} model cannot be shrunk to these sizes: {reason}.")
    tensors = {}
    for name in plan.target.parameters:
        transfer = plan.transfer(name)
        weight = source.read(transfer.source)
        tensors[name] = transfer_tensor(transfer, weight, key=name, dtype=dtype or weight.dtype, compute=torch.float64)
    return Cut(config, tensors, plan.layers)


def _plan(
    source: ModelSource,
    described: ModelMap,
    sizes: Mapping[Axis, int],
    importance: Importance,
    dtype: torch.dtype | None,
) -> tuple[Plan, PreTrainedConfig]:
    own = own_dtype(source.specs)
    layers = select_blocks(importance, sizes[Axis.LAYERS])
    config = _without_growth(target_config(source.config, described, sizes, layers, dtype))
    factors = compensation(source.config, config, described, sizes, dtype or own, source.embedding_factor(own))
    block_axes = {layer: select_in_block(importance, described, sizes, layer) for layer in layers.source}
    axes = select_shared(importance, described, sizes)
    # zero_pad in reverse: its factors keep every logit if what is removed contributes nothing.
    plan = Plan(described, describe(config), axes, layers, ZeroPad(described, sizes), factors, block_axes)
    return plan, config


def _without_growth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config without the entry of growths: a selection cannot be undone by them."""
    return type(config).from_dict({name: value for name, value in config.to_dict().items() if name != CONFIG_ENTRY})
