"""Grow a model in memory or on disk: one engine, two sinks."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Unpack, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, describe, find_field, on_cpu
from hf_warmscale.checkpoints import copy_side_files, refuse_existing, staged_directory, write_json
from hf_warmscale.options import DepthOperator, Sizes, WidthName
from hf_warmscale.resize.growing.experts import NUM_EXPERTS_PER_TOKEN, Upcycling, experts_config, plan_upcycling
from hf_warmscale.resize.growing.in_memory import make_model, restore_dtypes, stock_class
from hf_warmscale.resize.growing.proof import inexact_because
from hf_warmscale.resize.growing.receipt import GrowthReceipt, finish_receipt, with_entry
from hf_warmscale.resize.growing.record import make_receipt
from hf_warmscale.resize.growing.streamed import write_weights
from hf_warmscale.resize.growing.verify import compare_models, probe_tokens
from hf_warmscale.resize.model_source import ModelSource, StoredModel, find_model, own_dtype
from hf_warmscale.resize.planning.request import Growth, GrowthRequest, plan_growth


def grow_from_pretrained(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    width: WidthName = "clone",
    depth: DepthOperator = "stack",
    snr_db: float | None = 10.0,
    shrink: float = 0.4,
    insert_after: Sequence[int] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    target_tokens: int | None = None,
    **sizes: Unpack[Sizes],
) -> PreTrainedModel:
    """Grow a causal language model; the result is a stock model of the same class.

    Each axis can grow alone, and widths and depth can grow in one call; axes that are not named keep their size. The
    head size never changes: in families that derive it from the hidden size, heads and hidden size grow together.
    Tied embeddings stay tied, and a muP model keeps its base shape.

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id (`id@revision` too) or a live model, which
            is not changed.
        width (`str`): `"clone"` (exact; integer multiples of the hidden size), `"zero_pad"` (exact; any size), `"szp"`
            (shrink, zero-pad, perturb) or `"net2net"`.
        depth (`str`): `"stack"`, `"interleave"`, `"identity"` (exact) or `"dus"`; see [`layer_map`].
        snr_db (`float` or `None`): the signal-to-noise ratio of the paired noise of `clone`, in dB; `None` for no
            noise.
        shrink (`float`): lambda of `szp`.
        insert_after (`Sequence[int]`, *optional*): for `identity`, the source block that each new block follows.
        seed (`int`): of all random numbers.
        dtype (`torch.dtype`, *optional*): of all weights of the result; by default each keeps its own. The arithmetic
            is float32 or better.
        verify (`bool`): run both models on a short probe and record the difference in the receipt.
        target_tokens (`int`, *optional*): the planned training length, in tokens; a warning says if growth is unlikely
            to pay.
        hidden_size (`int`, *optional*): the width of the residual stream.
        intermediate_size (`int`, *optional*): the neurons of an MLP.
        num_attention_heads (`int`, *optional*): query heads.
        num_key_value_heads (`int`, *optional*): key-value heads.
        num_hidden_layers (`int`, *optional*): blocks.
        vocab_size (`int`, *optional*): tokens; new ones start near the mean of the old ones.
        num_experts (`int`, *optional*): makes a dense Llama, Mistral, Qwen2 or Qwen3 a mixture of equal experts; see
            [`Upcycling`].
        sizes (`int`): other axes by their name in the config (`moe_intermediate_size`, `n_embd`); see [`Sizes`].

    Returns:
        `PreTrainedModel`: in evaluation mode, on the device of a live source, with the receipt as a dict in
        `growth_receipt` and as the entry `growth` of its config.

    Raises:
        ValueError: if a size is below the source's or breaks the divisibility of heads, the family has no such size,
            an exact operator does not exist for this growth, or a weight is not finite.
        FileNotFoundError: if the source does not exist.

    Example:

    ```python
    >>> model = grow_from_pretrained("HuggingFaceTB/SmolLM2-135M", hidden_size=1152, num_hidden_layers=40,
    ...                              depth="identity")
    >>> model.growth_receipt["verification"]["max_abs_logit_difference"]
    ```
    """
    request = GrowthRequest(_named(sizes), width, depth, snr_db, shrink, insert_after, seed, dtype)
    with on_cpu():
        return _grow_in_memory(find_model(source), request, verify=verify, target_tokens=target_tokens)


def grow_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    width: WidthName = "clone",
    depth: DepthOperator = "stack",
    snr_db: float | None = 10.0,
    shrink: float = 0.4,
    insert_after: Sequence[int] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    verify: bool = False,
    target_tokens: int | None = None,
    max_shard_size: int | str = "5GB",
    **sizes: Unpack[Sizes],
) -> GrowthReceipt:
    """Grow a stored model into a new folder, one tensor at a time; the same bits as [`grow_from_pretrained`].

    The memory holds a few tensors, never a model. Tokenizer and generation config are copied.

    Args:
        source (`str` or `PathLike`): a folder or a Hub id (`id@revision` too).
        output (`str` or `PathLike`): a new or empty folder; it appears when it is complete.
        verify (`bool`): load both models and record the difference of their logits in the receipt.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.
        sizes (`int`): and all other arguments as for [`grow_from_pretrained`].

    Returns:
        `GrowthReceipt`: also in `growth_receipt.json`, and in short as the entry `growth` of the config.

    Raises:
        ValueError: as for [`grow_from_pretrained`], or if `output` is not empty.
        FileNotFoundError: if the source does not exist.
        OSError: if the disk is full; nothing is left at `output`.

    Example:

    ```python
    >>> grow_checkpoint("HuggingFaceTB/SmolLM2-135M", "grown", hidden_size=1152).growth_factor
    ```
    """
    refuse_existing(output)
    request = GrowthRequest(_named(sizes), width, depth, snr_db, shrink, insert_after, seed, dtype)
    with on_cpu():
        return _grow_on_disk(
            StoredModel(source), output, request, verify=verify, tokens=target_tokens, max_shard_size=max_shard_size
        )


def _grow_in_memory(
    source: ModelSource, request: GrowthRequest, *, verify: bool, target_tokens: int | None
) -> PreTrainedModel:
    growth = _plan(source, request)
    tensors = {name: growth.tensor(name, source.read) for name in growth.target.parameters}
    receipt = _receipt(growth, source)
    grown = make_model(with_entry(growth.config, receipt), tensors, source)
    if verify:
        _verify(receipt, growth, source.model, grown, {tensor.dtype for tensor in tensors.values()})
    restore_dtypes(grown, tensors)
    finish_receipt(receipt, target_tokens)
    setattr(grown, GrowthReceipt.attribute, receipt.to_dict())
    return grown


def _grow_on_disk(
    source: StoredModel,
    output: str | os.PathLike[str],
    request: GrowthRequest,
    *,
    verify: bool,
    tokens: int | None,
    max_shard_size: int | str,
) -> GrowthReceipt:
    growth = _plan(source, request)
    with staged_directory(output) as folder:
        copy_side_files(source.checkpoint.folder, folder)
        write_weights(growth, source, folder, dtype=request.dtype, max_shard_size=max_shard_size)
        # After the weights: reading them has hashed them too, so the source is read only once.
        receipt = _receipt(growth, source)
        _written_config(growth, source, receipt, request.dtype).save_pretrained(folder)
        if verify:
            grown = AutoModelForCausalLM.from_pretrained(
                folder, dtype=request.dtype or source.model.dtype, trust_remote_code=False
            )
            stored = {request.dtype} if request.dtype else {spec.dtype for spec in source.specs.values()}
            _verify(receipt, growth, source.model, grown, stored)
        finish_receipt(receipt, tokens)
        write_json(folder / GrowthReceipt.file_name, receipt.to_dict())
    return receipt


def _plan(source: ModelSource, request: GrowthRequest) -> Growth | Upcycling:
    """Plan a growth. A dense model that is asked for `num_experts` grows to its other sizes first."""
    config = source.config
    dtype = request.dtype or own_dtype(source.specs)
    factor = source.embedding_factor(own_dtype(source.specs))
    experts = request.sizes.get(Axis.EXPERTS)
    if experts is None or find_field(config, Axis.EXPERTS) is not None:
        return plan_growth(config, request, dtype, factor)
    experts_config(config, experts, NUM_EXPERTS_PER_TOKEN)  # refuses the family before anything else
    others = _other_sizes(config, request.sizes)
    growth = plan_growth(config, replace(request, sizes=others), dtype, factor) if others else None
    dense = config if growth is None else growth.config
    mixture = experts_config(dense, experts, NUM_EXPERTS_PER_TOKEN)
    if request.dtype is not None:
        mixture.dtype = request.dtype
    return plan_upcycling(dense, mixture, growth, request.seed, request.dtype)


def _other_sizes(config: PreTrainedConfig, sizes: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the named sizes, other than the number of experts, that differ from the source's."""
    own = {str(axis): size for axis, size in describe(config).sizes.items()}
    named = {name: size for name, size in sizes.items() if name != Axis.EXPERTS and size is not None}
    return {name: size for name, size in named.items() if size != own.get(name)}


def _receipt(growth: Growth | Upcycling, source: ModelSource) -> GrowthReceipt:
    return make_receipt(
        growth, source=source.name, source_hash=source.content_hash(), inexact_because=inexact_because(growth)
    )


def _written_config(
    growth: Growth | Upcycling, source: StoredModel, receipt: GrowthReceipt, dtype: torch.dtype | None
) -> PreTrainedConfig:
    """Return the config as `save_pretrained` of the live model would write it."""
    config = with_entry(growth.config, receipt)
    config.architectures = [stock_class(config).__name__]
    config.dtype = dtype or own_dtype(source.specs)
    return config


def _verify(
    receipt: GrowthReceipt,
    growth: Growth | Upcycling,
    before: PreTrainedModel,
    after: PreTrainedModel,
    stored: Iterable[torch.dtype],
) -> None:
    tokens = probe_tokens(before, before.config.vocab_size)
    receipt.verification = compare_models(before, after, growth.source.layer_path, tokens, stored, exact=receipt.exact)


def _named(sizes: Sizes) -> dict[str, int | None]:
    return cast(dict[str, int | None], sizes)  # mypy takes the values of a TypedDict for objects
