"""Prove a map: permuting an axis wherever the map names it must not change the logits."""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture.indexing import flat_index
from hf_warmscale.architecture.model_map import Axis, Dimension
from hf_warmscale.architecture.observe import logits_of
from hf_warmscale.architecture.tiny import FIRST_ORDINARY_TOKEN, build, named_state

TOLERANCE = 1e-12
"""A right label changes logits by 1e-15 of the largest; a wrong one by at least 1e-4 in all families."""

PROVED_AXES = (
    Axis.VOCAB,
    Axis.HIDDEN,
    Axis.INTERMEDIATE,
    Axis.HEADS,
    Axis.KV_HEADS,
    Axis.EXPERTS,
    Axis.EXPERT_INTERMEDIATE,
    Axis.SHARED_INTERMEDIATE,
)
"""Every axis but two: rotary embeddings distinguish the coordinates of a head, and layers are found by name."""

Labels = Mapping[str, tuple[Dimension, ...]]
Permutations = Mapping[Axis, torch.Tensor]


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a small model in float64 with random weights, always the same, in which no gain is 1 and no bias 0.

    Args:
        config (`PreTrainedConfig`): of a small model.

    Example:

    ```python
    >>> random_model(model.config).dtype
    torch.float64
    ```
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which would reseed every GPU too
        return randomize(build(config))


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Return the model in float64 with random weights in which no gain is 1 and no bias 0."""
    model = model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in named_state(model).values():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(noise, alpha=noise_std(tensor.shape, most=0.2))
    return model


def noise_std(shape: Sequence[int], most: float) -> float:
    """Return a standard deviation of at most `most` with which a matrix does not amplify what it is given.

    The ranks of latent attention have no axis and stay at 512 or 1536 in a tiny model. With the noise of the narrow
    matrices its attention scores would pick single tokens, and every block would amplify rounding errors by ten.
    """
    return min(most, 1 / sqrt(max(shape[-2:]))) if len(shape) > 1 else most


def axis_permutations(axis: Axis, sizes: Mapping[Axis, int]) -> Permutations:
    """Return permutations that exercise one axis and respect how query heads share key heads.

    Permuting the key heads moves whole groups of query heads with them; permuting the heads stays inside the groups.
    """
    if axis is Axis.VOCAB:
        ordinary = _permutation(sizes[axis] - FIRST_ORDINARY_TOKEN) + FIRST_ORDINARY_TOKEN
        return {axis: torch.cat([torch.arange(FIRST_ORDINARY_TOKEN), ordinary])}
    if axis in (Axis.HEADS, Axis.KV_HEADS) and Axis.KV_HEADS in sizes:
        groups, in_group = sizes[Axis.KV_HEADS], sizes[Axis.HEADS] // sizes[Axis.KV_HEADS]
        heads = torch.arange(sizes[Axis.HEADS]).reshape(groups, in_group)
        if axis is Axis.HEADS:
            return {axis: heads[:, _permutation(in_group)].flatten()}
        # Whole groups move: the keys by `order`, and the query heads of each group with them.
        order = _permutation(groups)
        return {Axis.KV_HEADS: order, Axis.HEADS: heads[order].flatten()}
    return {axis: _permutation(sizes[axis])}


def permutation_error(
    model: PreTrainedModel,
    labels: Labels,
    sizes: Mapping[Axis, int],
    axis: Axis,
    tokens: torch.Tensor,
    logits: torch.Tensor,
) -> float:
    """Return max |change of a logit| / max |logit| when `axis` is permuted wherever `labels` name it.

    Args:
        model (`PreTrainedModel`): a tiny random model in float64; it is not changed.
        labels (`Mapping[str, tuple[Dimension, ...]]`): the layout of every dimension of every parameter and buffer.
        sizes (`Mapping[Axis, int]`): the sizes of the model.
        axis (`Axis`): the axis to permute.
        tokens (`torch.Tensor`): token ids `[batch, tokens]`.
        logits (`torch.Tensor`): the model's logits for them.
    """
    permutations = axis_permutations(axis, sizes)
    permuted = {}
    for name, tensor in named_state(model).items():
        moved = tensor.detach()
        for dim, layout in enumerate(labels[name]):
            index = flat_index(layout, sizes, permutations)
            if not torch.equal(index, torch.arange(len(index))):
                moved = moved.index_select(dim, index)
        permuted[name] = moved
    if axis is Axis.VOCAB:
        order = permutations[axis]
        # Row j of the permuted table belongs to token order[j], so token t has moved to row argsort(order)[t].
        after = logits_of(_Rewired(model, permuted), torch.argsort(order)[tokens])
        logits = logits[..., order] if logits.shape[-1] == len(order) else logits
    else:
        after = logits_of(_Rewired(model, permuted), tokens)
    return float((after - logits).abs().max() / logits.abs().max())


class _Rewired(nn.Module):
    """The model with other weights, without touching it."""

    def __init__(self, model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._call = (model, dict(weights))  # a tuple, so that the model is no submodule

    def forward(self, **inputs: torch.Tensor) -> object:
        model, weights = self._call
        return functional_call(model, weights, args=(), kwargs=inputs)


def _permutation(size: int) -> torch.Tensor:
    """A shuffle that is not its own inverse and, where possible, moves every coordinate."""
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    return shuffled if not torch.equal(shuffled, torch.arange(size)) else shuffled.roll(1)
