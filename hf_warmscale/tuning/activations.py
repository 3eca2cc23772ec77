"""How far training moves each activation of a model, for the coordinate check (arXiv:2203.03466)."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_warmscale.architecture import find_layers
from hf_warmscale.evaluation import evaluation_mode
from hf_warmscale.tuning.ladder import Axis

LOGITS = "logits"

Batch = Mapping[str, torch.Tensor]


def activation_changes(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    probe: Batch,
    *,
    axis: Axis = "width",
) -> list[dict[str, float]]:
    """Train one step on each batch and return, after each, the RMS of the change of every activation since the start.

    Args:
        model (`PreTrainedModel`): a causal LM; its blocks, its leaf modules and its logits are looked at.
        optimizer (`torch.optim.Optimizer`): on its parameters.
        batches (`Sequence[Mapping[str, Tensor]]`): what the model takes to return a loss: `input_ids` and `labels`,
            `[batch, tokens]` each, and the `position_ids` of packed rows.
        probe (`Mapping[str, Tensor]`): the batch on which the activations are looked at.
        axis (`"width"` or `"depth"`): what the changes will be compared over.

    Returns:
        `list[dict[str, float]]`: for each step, by module path; over depths, by `comparable_names`.
    """
    start = activations(model, probe, axis)
    changes = []
    for batch in batches:
        optimizer.zero_grad()
        model(**to_model(batch, model), use_cache=False).loss.backward()
        optimizer.step()
        now = activations(model, probe, axis)
        # RMS over all entries, since the start and not since the last step: the sum of the updates is what must keep
        # its size.
        changes.append({name: float((now[name] - start[name]).square().mean().sqrt()) for name in start})
    return changes


@torch.no_grad()
def activations(model: PreTrainedModel, probe: Batch, axis: Axis = "width") -> dict[str, torch.Tensor]:
    """Return the outputs of the blocks and of every module inside them on the probe, and the logits; no dropout."""
    seen: dict[str, torch.Tensor] = {}
    with evaluation_mode(model), _watching(model, axis, seen.__setitem__):
        seen[LOGITS] = model(**to_model(probe, model), use_cache=False).logits.float()
    return seen


def to_model(batch: Batch, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a batch on the device of a model."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def comparable_names(name: str, layer_path: str, layers: int) -> list[str]:
    """Return the names under which a module is compared over depths, by its share of the depth; often none.

    The stream after a fixed number of blocks does not compare: each block adds 1/m_L of what it did at the base. What
    compares is the stream after half of the blocks (`middle`), what the next block makes of it (`middle.mlp`), and the
    last block; with two blocks that next one is the last.

    Args:
        name (`str`): a module path.
        layer_path (`str`): that of the list of blocks.
        layers (`int`): their number.
    """
    match = re.fullmatch(rf"{re.escape(layer_path)}\.(\d+)(.*)", name)
    if match is None:
        return [name]
    # `...layers.<i>` itself is the stream *after* block i, so half of the blocks have acted after block layers/2 - 1.
    # A module inside (`match[2]`) belongs to the block that comes next.
    middle = layers // 2 if match[2] else layers // 2 - 1
    positions = {"middle": middle, "last": layers - 1}
    return [f"{layer_path}.{position}{match[2]}" for position, place in positions.items() if place == int(match[1])]


@contextmanager
def _watching(model: PreTrainedModel, axis: Axis, record: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    layer_path = find_layers(model)
    layers = len(list(model.get_submodule(layer_path).children()))
    readout = model.get_output_embeddings()
    handles = []
    for path, module in model.named_modules():
        names = comparable_names(path, layer_path, layers) if axis == "depth" else [path]
        # Leaf modules and whole blocks. The readout is left out: `LOGITS` has its output after the scaling.
        looked_at = not list(module.children()) or path.rpartition(".")[0] == layer_path
        if looked_at and module is not readout:
            handles += [module.register_forward_hook(_recorder(name, record)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorder(name: str, record: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        # Attention and some blocks return a tuple; its first entry is the hidden state.
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            record(name, first.float())

    return hook
