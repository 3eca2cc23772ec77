"""Grow a model in memory or streamed: one engine, two sinks."""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints import content_hash, refuse_non_finite
from hf_warmscale.resize.duplicates import duplicate_fraction
from hf_warmscale.resize.engine import Transfer, transfer_tensor
from hf_warmscale.resize.exactness import is_exact
from hf_warmscale.resize.layer_map import DepthOperator
from hf_warmscale.resize.operators import WidthName
from hf_warmscale.resize.receipt import CONFIG_ENTRY, RECEIPT_ATTRIBUTE, GrowthReceipt, growth_warnings
from hf_warmscale.resize.request import Growth, GrowthRequest, plan_growth
from hf_warmscale.resize.target import embedding_buffer
from hf_warmscale.resize.verify import probe_tokens, verify_growth


def grow_from_pretrained(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    num_hidden_layers: int | None = None,
    vocab_size: int | None = None,
    width: WidthName = "clone",
    depth: DepthOperator = "stack",
    snr_db: float | None = 10.0,
    shrink: float = 0.4,
    insert_after: Sequence[int] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    target_tokens: int | None = None,
    **other_sizes: int | None,
) -> PreTrainedModel:
    """Grow a causal language model; what comes back is a stock model of the same class.

    Any axis may grow apart from the others, and widths and depth in one call; an axis that is not named stays. The
    head size stays too: where a family derives it from the hidden size, heads and hidden size grow together.
    Embeddings that are tied stay tied, and a muP model keeps its base shape.

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id or a live model, which is not changed.
        hidden_size (`int`, *optional*): the width of the residual stream.
        intermediate_size (`int`, *optional*): neurons of an MLP.
        num_attention_heads (`int`, *optional*): query heads.
        num_key_value_heads (`int`, *optional*): key-value heads.
        num_hidden_layers (`int`, *optional*): blocks.
        vocab_size (`int`, *optional*): tokens; new ones start near the mean of the old.
        width (`str`): `"clone"` (exact; integer multiples of the hidden size), `"zero_pad"` (exact; any size), `"szp"`
            (shrink, zero-pad, perturb) or `"net2net"`.
        depth (`str`): `"stack"`, `"interleave"`, `"identity"` (exact) or `"dus"`; see [`layer_map`].
        snr_db (`float` or `None`): signal-to-noise ratio of the paired noise of `clone`, in dB; `None` for none.
        shrink (`float`): lambda of `szp`.
        insert_after (`Sequence[int]`, *optional*): for `identity`, the source block before each new one.
        seed (`int`): of all noise and draws.
        dtype (`torch.dtype`, *optional*): of the result; the source's by default. The arithmetic is float32 or better.
        verify (`bool`): run both models on a short probe and keep the difference in the receipt.
        target_tokens (`int`, *optional*): the planned training length, in tokens, to be warned if growth is a bad bet.
        other_sizes (`int`): further axes by their name in the config (`moe_intermediate_size`).

    Returns:
        `PreTrainedModel`: in evaluation mode, with the receipt as a dict in `growth_receipt` and as the entry `growth`
        of its config.

    Raises:
        ValueError: if a size is below the source's or breaks the heads' divisibility, the family has no such size, an
            exact operator does not exist for this growth, or a weight is not finite.
        FileNotFoundError: if there is no such source.

    Example:

    ```python
    >>> model = grow_from_pretrained("HuggingFaceTB/SmolLM2-135M", hidden_size=1152, num_hidden_layers=40,
    ...                              depth="identity")
    >>> model.growth_receipt["verification"]["max_abs_logit_difference"]
    ```
    """
    model = source if isinstance(source, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(source)
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "num_hidden_layers": num_hidden_layers,
        "vocab_size": vocab_size,
        **other_sizes,
    }
    request = GrowthRequest(sizes, width, depth, snr_db, shrink, insert_after, seed, dtype)
    return grow_model(model, request, verify=verify, target_tokens=target_tokens)


def grow_model(
    model: PreTrainedModel, request: GrowthRequest, *, verify: bool = True, target_tokens: int | None = None
) -> PreTrainedModel:
    """Grow a live model; see [`grow_from_pretrained`]."""
    dtype = request.dtype or model.dtype
    factor = embedding_buffer(model)
    growth = plan_growth(model.config, request, dtype, None if factor is None else float(factor))
    state = model.state_dict()
    weights = {name: state[name] for name in growth.plan.source.parameters}
    for name, tensor in weights.items():
        refuse_non_finite(name, tensor)
    transfers = growth.transfers()
    tensors = {
        name: transfer_tensor(transfer, weights[transfer.source], key=growth.key(name), dtype=dtype)
        for name, transfer in transfers.items()
    }
    receipt = make_receipt(
        growth, transfers, model.config.name_or_path or type(model).__name__, content_hash(weights), dtype
    )
    grown = load_weights(type(model), with_entry(growth.config, receipt), tensors, dtype)
    match_buffers(grown, model)
    grown.generation_config = copy.deepcopy(model.generation_config)
    if verify:
        tokens = probe_tokens(model)
        receipt.verification = verify_growth(model, grown, growth.plan.source.layer_path, tokens)
    finish_receipt(receipt, target_tokens)
    setattr(grown, RECEIPT_ATTRIBUTE, receipt.to_dict())
    return grown


def load_weights(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Return a model with exactly these weights; nothing may be missing or left over."""
    loaded: tuple[PreTrainedModel, dict[str, object]] = model_class.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
    )  # type: ignore[assignment]  # a pair because of output_loading_info
    model, info = loaded
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, problems
    return model


def match_buffers(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Give the buffers the dtypes that they have in the source: its rotary frequencies may have been cast with it."""
    buffers = dict(model.named_buffers())
    for name, buffer in source.named_buffers():
        if name in buffers and buffer.is_floating_point():
            buffers[name].data = buffers[name].data.to(buffer.dtype)


def make_receipt(
    growth: Growth, transfers: Mapping[str, Transfer], source: str, source_hash: str, dtype: torch.dtype
) -> GrowthReceipt:
    """Return the receipt of a growth, before anything is measured."""
    request, plan = growth.request, growth.plan
    parameters = plan.source.num_parameters(), plan.target.num_parameters()
    return GrowthReceipt(
        source=source,
        source_hash=source_hash,
        width=request.width,
        depth=request.depth,
        snr_db=request.snr_db if request.width == "clone" else None,
        shrink=request.shrink if request.width == "szp" else None,
        seed=request.seed,
        source_sizes={str(axis): size for axis, size in plan.source.sizes.items()},
        sizes={str(axis): size for axis, size in plan.target.sizes.items()},
        layers=list(plan.layers.source),
        new_layers=sorted(plan.layers.silent),
        source_parameters=parameters[0],
        parameters=parameters[1],
        growth_factor=parameters[1] / parameters[0],
        duplicate_fraction=duplicate_fraction(transfers),
        exact=is_exact(plan),
        dtype=str(dtype).removeprefix("torch."),
    )


def with_entry(config: PreTrainedConfig, receipt: GrowthReceipt) -> PreTrainedConfig:
    """Return the config with the receipt's entry."""
    return type(config).from_dict({**config.to_dict(), CONFIG_ENTRY: receipt.config_entry()})


def finish_receipt(receipt: GrowthReceipt, target_tokens: int | None) -> None:
    """Add what speaks against the growth, and say it."""
    receipt.warnings = growth_warnings(receipt, target_tokens)
    for message in receipt.warnings:
        warnings.warn(message, stacklevel=4)
