"""A live model whose weights are pruned and rounded for a while, and then are what they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_warmscale.architecture import ModelMap, Role
from hf_warmscale.compression.magnitude import extend_masks, num_pruned
from hf_warmscale.compression.quantization import fake_quantize
from hf_warmscale.compression.storage import stored_bytes


@dataclass(frozen=True)
class Compression:
    """What is done to the weights of a model.

    Args:
        bits (`int` or `None`): of the values of `quantize_roles`; `None` leaves them as they are.
        sparsity (`float`): share of zeros among the weights of `prune_roles`.
        group_size (`int` or `None`): inputs that share a scale; `None` for one scale a row.
        prune_roles (`tuple[Role, ...]`): see [`Role`].
        quantize_roles (`tuple[Role, ...]`): see [`Role`].
    """

    bits: int | None
    sparsity: float
    group_size: int | None
    prune_roles: tuple[Role, ...]
    quantize_roles: tuple[Role, ...]


@contextmanager
@torch.no_grad()
def compressed(model: PreTrainedModel, described: ModelMap, how: Compression) -> Iterator[int]:
    """Prune a model by magnitude and then quantize it, in place, inside the block; yield its bytes on disk.

    Args:
        model (`PreTrainedModel`): its weights are back, bit for bit, after the block.
        described (`ModelMap`): its description.
        how (`Compression`): what is done.
    """
    state = model.state_dict()  # shares its storage with the model; buffers that are stored are in it too
    parameters = {name: state[name] for name in described.parameters}
    masks = _masks(parameters, described, how)
    quantized = _names(described, how.quantize_roles) if how.bits is not None else ()
    before = {name: parameters[name].clone() for name in {*masks, *quantized}}
    try:
        for name, mask in masks.items():
            parameters[name].masked_fill_(mask, 0.0)
        for name in quantized:
            assert how.bits is not None
            rounded = fake_quantize(_inputs_last(parameters[name], described, name), how.bits, how.group_size)
            _inputs_last(parameters[name], described, name).copy_(rounded)
        yield sum(
            stored_bytes(
                _inputs_last(weight, described, name),
                how.bits if name in quantized else None,
                how.group_size,
                sparse=name in masks,
            )
            for name, weight in parameters.items()
        )
    finally:
        for name, weight in before.items():
            parameters[name].copy_(weight)


def _masks(parameters: dict[str, Tensor], described: ModelMap, how: Compression) -> dict[str, Tensor]:
    if not how.sparsity:
        return {}
    masks = {name: torch.zeros_like(parameters[name], dtype=torch.bool) for name in _names(described, how.prune_roles)}
    total = sum(mask.numel() for mask in masks.values())
    extend_masks(parameters.__getitem__, masks, num_pruned(how.sparsity, total))
    return masks


def _names(described: ModelMap, roles: Sequence[Role]) -> list[str]:
    return [parameter.name for parameter in described.with_role(*roles)]


def _inputs_last(weight: Tensor, described: ModelMap, name: str) -> Tensor:
    """Return a view `[..., out, in]`; GPT-2 stores its weights the other way round."""
    fan_in = described.parameters[name].fan_in
    return weight if fan_in is None else weight.movedim(fan_in, -1)
