"""Observe one run of a tiny model: the modules that read the residual stream, and the behaviour of its norms."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_warmscale.architecture.model_map import NormMap, NormPosition
from hf_warmscale.architecture.precision import StayInFloat64
from hf_warmscale.architecture.tiny import FIRST_ORDINARY_TOKEN

Call = tuple[tuple[Any, ...], dict[str, Any], Any]
LayerOf = Callable[[str], int | None]


@dataclass
class Trace:
    """The calls of one forward pass, in order.

    Args:
        calls (`dict[str, Call]`): for every module that ran, its last positional and keyword arguments and output.
        order (`list[str]`): module paths in the order in which they began.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def input(self, module: str) -> torch.Tensor | None:
        """Return the first input tensor of a module."""
        args, kwargs, _ = self.calls[module]
        return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)

    def output(self, module: str) -> torch.Tensor | None:
        """Return the first output tensor of a module."""
        result = self.calls[module][2]
        values = result if isinstance(result, tuple | list) else (result,)
        return next((value for value in values if isinstance(value, torch.Tensor)), None)


def sample_tokens(vocab_size: int) -> torch.Tensor:
    """Return a fixed batch `[2, 12]` of ordinary token ids.

    Args:
        vocab_size (`int`): of the model that reads them.

    Example:

    ```python
    >>> sample_tokens(300).shape
    torch.Size([2, 12])
    ```
    """
    generator = torch.Generator().manual_seed(1)
    return torch.randint(FIRST_ORDINARY_TOKEN, vocab_size, (2, 12), generator=generator)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the float64 logits `[batch, tokens, vocab]`, computed in float64 throughout.

    Args:
        model (`nn.Module`): a causal LM in float64.
        tokens (`Tensor`): ids, `[batch, tokens]`.

    Example:

    ```python
    >>> logits_of(random_model(model.config), sample_tokens(300)).shape
    torch.Size([2, 12, 300])
    ```
    """
    with torch.no_grad(), StayInFloat64():
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return output.logits.detach()  # type: ignore[no-any-return]


def trace(model: PreTrainedModel, tokens: torch.Tensor) -> Trace:
    """Run the model once and record every module's call."""
    record = Trace()
    handles = []

    def before(path: str) -> Callable[..., None]:
        return lambda *_: record.order.append(path)

    def after(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            record.calls[path] = (args, kwargs, output)

        return hook

    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(before(path)),
            module.register_forward_hook(after(path), with_kwargs=True),
        ]
    try:
        logits_of(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return record


def is_projection(module: nn.Module) -> bool:
    """Tell whether a module is a matrix: `nn.Linear` or transformers' transposed `Conv1D`."""
    return isinstance(module, nn.Linear | Conv1D)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer with parameters of its own, by the name of its class."""
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))


def stream_readers(model: PreTrainedModel, record: Trace, layer_path: str) -> frozenset[str]:
    """Return the projections whose input is the residual stream or a norm of it."""
    streams = [
        record.output(path)
        for path, module in model.named_modules()
        if path in record.calls and (is_norm(module) or path.rpartition(".")[0] == layer_path)
    ]
    # The input of the first block is the output of no block and of no norm.
    streams += [record.input(path) for path in record.calls if path.rpartition(".")[0] == layer_path]
    # The same memory, not equal values: a projection of the stream may happen to have equal values elsewhere.
    # The trace keeps these tensors alive, so no address has been used again.
    pointers = {tensor.data_ptr() for tensor in streams if tensor is not None}
    readers = set()
    for path, module in model.named_modules():
        if is_projection(module) and path in record.calls:
            given = record.input(path)
            if given is not None and given.data_ptr() in pointers:
                readers.add(path)
    return frozenset(readers)


def observe_norms(
    model: PreTrainedModel, record: Trace, layer_of: LayerOf, on_stream: Callable[[str], bool]
) -> dict[str, NormMap]:
    """Find the behaviour of every norm of the model by calling it again on its input.

    Args:
        model (`PreTrainedModel`): a tiny model with random weights, in float64.
        record (`Trace`): one forward pass of it.
        layer_of (`Callable`): the index of the block that holds a module, or `None`.
        on_stream (`Callable`): whether a norm's gain lies along the hidden axis.
    """
    norms = {}
    first_layer = next(i for i, path in enumerate(record.order) if layer_of(path) is not None)
    for path, module in model.named_modules():
        if not is_norm(module) or path not in record.calls:
            continue
        layer = layer_of(path)
        position: NormPosition = "inner"
        if layer is None:
            position = "embedding" if record.order.index(path) < first_layer else "final"
        elif on_stream(path):
            position = _position_in_layer(model, record, path, layer, layer_of)
        norms[path] = NormMap(
            path, position, _is_centered(module, record, path), _gain_offset(module, record, path), layer
        )
    return _mark_post_ln(model, record, norms, layer_of)


def embedding_scale(model: PreTrainedModel, tokens: torch.Tensor, first_layer: str) -> float | None:
    """Return the factor between the embedding table and the stream, `None` if they are not proportional."""
    weight = model.get_input_embeddings().get_parameter("weight")
    streams = []
    # The difference of two runs, so that positions added to the embedding cancel. Scaling by 2 is exact in floating
    # point, so the weights come back to the bit.
    for factor in (1.0, 2.0):
        with torch.no_grad():
            weight.mul_(factor)
        streams.append(trace(model, tokens).input(first_layer))
        with torch.no_grad():
            weight.div_(factor)
    before, after = streams
    if before is None or after is None or before.shape[-1] != weight.shape[-1]:
        return None
    ratio = (after - before) / weight.detach()[tokens]
    return float(ratio.mean()) if torch.allclose(ratio, ratio.mean(), rtol=1e-6) else None


def observe_stream_gains(
    model: PreTrainedModel, tokens: torch.Tensor, blocks: Sequence[str], writers: Collection[str]
) -> frozenset[str]:
    """Find the weights with which blocks multiply the residual stream (Doge, Gemma 4).

    A block in which nothing is written to the stream hands it on, multiplied by these weights. With 1 in their place
    it hands it on as it is.

    Args:
        model (`PreTrainedModel`): a tiny model with random weights, in float64.
        tokens (`Tensor`): ids, `[batch, tokens]`.
        blocks (`Sequence[str]`): the paths of its blocks.
        writers (`Collection[str]`): the weights of all blocks that write to the stream.

    Returns:
        `frozenset[str]`: their names.
    """
    state = model.state_dict()
    # What multiplies the stream is no part of a sublayer, so the block itself owns it.
    own = {block: [name for name in state if name.rpartition(".")[0] == block] for block in blocks}
    if not any(own.values()):
        return frozenset()
    saved = {name: state[name].clone() for name in {*writers, *chain(*own.values())}}
    for name in saved:
        state[name].fill_(1.0 if name in chain(*own.values()) else 0.0)
    record = trace(model, tokens)
    for name, value in saved.items():
        state[name].copy_(value)
    kept = [block for block in blocks if _hands_on(record, block)]
    return frozenset(chain(*(own[block] for block in kept)))


def _hands_on(record: Trace, block: str) -> bool:
    before, after = record.input(block), record.output(block)
    return before is not None and after is not None and torch.equal(before, after)


def _replay(module: nn.Module, record: Trace, path: str, shift: float = 0.0) -> torch.Tensor:
    args, kwargs, _ = record.calls[path]
    shifted = (args[0] + shift, *args[1:]) if args else args
    if not args:
        name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        kwargs = {**kwargs, name: kwargs[name] + shift}
    with torch.no_grad(), StayInFloat64():
        return module(*shifted, **kwargs)  # type: ignore[no-any-return]


def _is_centered(module: nn.Module, record: Trace, path: str) -> bool:
    # A constant on all coordinates vanishes only if the norm subtracts the mean.
    return torch.allclose(_replay(module, record, path), _replay(module, record, path, shift=0.7), atol=1e-6)


def _gain_offset(module: nn.Module, record: Trace, path: str) -> float:
    saved = {name: parameter.detach().clone() for name, parameter in module.named_parameters(recurse=False)}
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
    # With all parameters at 0, a norm that stores g returns 0, and one that stores g - 1 still has a gain of 1.
    vanishes = not _replay(module, record, path).any()
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(saved[name])
    return 0.0 if vanishes else 1.0


def _position_in_layer(
    model: PreTrainedModel, record: Trace, path: str, layer: int, layer_of: LayerOf
) -> Literal["pre", "post"]:
    given = record.input(path)
    if given is None:
        return "pre"
    for other, module in model.named_modules():
        # Not a module that contains the norm: its output comes later.
        inside = layer_of(other) == layer and not is_norm(module) and not path.startswith(f"{other}.")
        if inside and other in record.calls and not isinstance(module, nn.Dropout):
            output = record.output(other)
            if output is not None and output.data_ptr() == given.data_ptr() and output.shape == given.shape:
                return "post"
    return "pre"


def _mark_post_ln(
    model: PreTrainedModel, record: Trace, norms: dict[str, NormMap], layer_of: LayerOf
) -> dict[str, NormMap]:
    """Mark post-LN norms: if the output of a block is that of one of its norms, no stream bypasses them."""
    outputs = {}
    for path in record.calls:
        layer = layer_of(path)
        if layer is not None and path.rpartition(".")[2] == str(layer):
            tensor = record.output(path)
            outputs[layer] = None if tensor is None else tensor.data_ptr()
    ends_in_norm = set()
    for path, norm in norms.items():
        output = record.output(path)
        if norm.layer is not None and output is not None and outputs.get(norm.layer) == output.data_ptr():
            ends_in_norm.add(norm.layer)
    return {
        path: NormMap(path, "residual", norm.centered, norm.gain_offset, norm.layer)
        if norm.layer in ends_in_norm and norm.position == "pre"
        else norm
        for path, norm in norms.items()
    }
