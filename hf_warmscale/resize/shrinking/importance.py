"""Measure the importance of each coordinate of a model on calibration text.

The importance of a coordinate is the norm of its activation times the norm of the weight columns that read it. The
importance of a block is its change of the residual stream: 1 - cos(before, after) (block influence, arXiv:2403.03853).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_warmscale.architecture import Axis, Dimension, ModelMap, ParameterMap
from hf_warmscale.evaluation import evaluation_mode

Place = tuple[Axis, int | None]
"""An axis and the block in which it is measured; `None` if all blocks share it."""

SHARED = (Axis.HIDDEN,)


@dataclass
class Importance:
    """Importance on calibration text.

    Args:
        axes (`dict[Place, Tensor]`): for each axis and block, the squared importance of every coordinate `[size]`
            (float64).
        blocks (`Tensor`): the influence of every block `[layers]` (float64).
    """

    axes: dict[Place, Tensor] = field(default_factory=dict)
    blocks: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))


@torch.no_grad()
def measure_importance(model: PreTrainedModel, source: ModelMap, tokens: Tensor) -> Importance:
    """Run a model on calibration text and return the importance of each coordinate and each block.

    Args:
        model (`PreTrainedModel`): the model.
        source (`ModelMap`): its description.
        tokens (`Tensor`): token ids `[batch, tokens]`.
    """
    readers = {parameter.module: parameter for parameter in source.parameters.values() if parameter.fan_in is not None}
    readout = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    with (
        evaluation_mode(model),
        _input_norms(model, {*readers, readout}) as norms,
        _block_influence(model, source) as influence,
    ):
        for batch in tokens.split(1):
            model(input_ids=batch.to(model.device), use_cache=False)
    result = Importance(blocks=torch.stack(influence) / max(len(tokens), 1))
    weights = dict(model.named_parameters())
    for path, parameter in readers.items():
        # |x_i|^2 times |W[:, i]|^2. The input of stacked experts is not watched, so their weights alone count.
        squares = _column_squares(weights[parameter.name], parameter) * norms.get(path, 1.0)
        _add(result, parameter, squares, source)
    if readout not in readers:  # tied: the readout is the embedding
        embedding = next(parameter for parameter in source.with_role("embedding") if Axis.VOCAB in parameter.axes())
        squares = _precise(weights[embedding.name]).square().sum(0).cpu().double() * norms[readout]
        _add_axis(result, embedding.dimensions[1], Axis.HIDDEN, None, squares, source)
    return result


@contextmanager
def _input_norms(model: PreTrainedModel, paths: set[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the squared norm of every input coordinate of some modules, if their input is one tensor."""
    norms: dict[str, Tensor] = {}

    def watch(path: str) -> None:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = _precise(inputs[0]).flatten(0, -2).square().sum(0).cpu().double()
            norms[path] = norms[path] + seen if path in norms else seen

        handles.append(model.get_submodule(path).register_forward_pre_hook(record))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path in paths:
        if hasattr(model.get_submodule(path), "weight"):  # not a module that holds all experts
            watch(path)
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _block_influence(model: PreTrainedModel, source: ModelMap) -> Iterator[list[Tensor]]:
    """Collect 1 - cos(before, after) of every block: the mean over tokens, summed over sequences."""
    blocks = list(model.get_submodule(source.layer_path).children())
    influence = [torch.zeros((), dtype=torch.float64) for _ in blocks]

    def watch(number: int, block: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def record(
            module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor]
        ) -> None:
            before = _precise(inputs[0] if inputs else kwargs["hidden_states"])
            after = _precise(output if isinstance(output, Tensor) else output[0])
            change = (before - after).square().sum(-1)
            cosine = nn.functional.cosine_similarity(before, after, dim=-1)
            # A block that writes nothing has importance exactly 0, whatever the cosine rounds to.
            influence[number] += torch.where(change > 0, (1 - cosine).clamp(min=1e-30), 0.0).mean().cpu().double()

        return block.register_forward_hook(record, with_kwargs=True)

    handles = [watch(number, block) for number, block in enumerate(blocks)]
    try:
        yield influence
    finally:
        for handle in handles:
            handle.remove()


def _column_squares(weight: Tensor, parameter: ParameterMap) -> Tensor:
    """Return, for each input coordinate of a weight, the squared norm of its column."""
    assert parameter.fan_in is not None
    others = [dim for dim in range(weight.dim()) if dim != parameter.fan_in]
    return _precise(weight).square().sum(others).cpu().double()


def _precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU and in float32 on other devices, of which some have no float64."""
    return tensor.detach().to(torch.float64 if tensor.device.type == "cpu" else torch.float32)


def _add(result: Importance, parameter: ParameterMap, squares: Tensor, source: ModelMap) -> None:
    assert parameter.fan_in is not None
    dimension = parameter.dimensions[parameter.fan_in]
    for axis in {factor for block in dimension for factor in block.factors if isinstance(factor, Axis)}:
        layer = None if axis in SHARED else parameter.layer
        _add_axis(result, dimension, axis, layer, squares, source)


def _add_axis(
    result: Importance, dimension: Dimension, axis: Axis, layer: int | None, squares: Tensor, source: ModelMap
) -> None:
    """Add the squares of a dimension's coordinates to those of one of its axes."""
    total = torch.zeros(source.sizes[axis], dtype=torch.float64)
    for block, part in zip(dimension, squares.split([block.size(source.sizes) for block in dimension]), strict=True):
        for place, factor in enumerate(block.factors):
            # Sum over the other factors of the block: a head's score is that of its coordinates together.
            if factor == axis:
                shaped = part.reshape(block.shape(source.sizes))
                total += shaped.movedim(place, 0).reshape(len(total), -1).sum(1)
    key = (axis, layer)
    result.axes[key] = result.axes[key] + total if key in result.axes else total
