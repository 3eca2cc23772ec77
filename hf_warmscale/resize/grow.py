"""Grow a model in memory or streamed: one engine, two sinks."""

import os
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_warmscale.options import DepthOperator, WidthName
from hf_warmscale.resize.growing.in_memory import grow_model, load_source
from hf_warmscale.resize.growing.receipt import GrowthReceipt
from hf_warmscale.resize.growing.streamed import grow_stored
from hf_warmscale.resize.planning.request import GrowthRequest


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
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id (`id@revision` too) or a live model, which
            is not changed.
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
        other_sizes (`int`): further axes by their name in the config (`moe_intermediate_size`). `num_experts` makes a
            dense Llama, Mistral, Qwen2 or Qwen3 a mixture of equal experts; see [`Upcycling`].

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
    model, name = load_source(source)
    return grow_model(model, request, name=name, verify=verify, target_tokens=target_tokens)


def grow_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
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
    verify: bool = False,
    target_tokens: int | None = None,
    max_shard_size: int | str = "5GB",
    **other_sizes: int | None,
) -> GrowthReceipt:
    """Grow a stored model into a new folder, one tensor at a time; the same bits as [`grow_from_pretrained`].

    Memory holds a target tensor and little more, never a model. Tokenizer and generation config come along.

    Args:
        source (`str` or `PathLike`): a folder or a Hub id.
        output (`str` or `PathLike`): a new or empty folder; it appears when it is complete.
        verify (`bool`): load both models and keep the difference of their logits in the receipt.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.
        other_sizes (`int`): and all else: as for [`grow_from_pretrained`].

    Returns:
        `GrowthReceipt`: also in `growth_receipt.json`, and in short as the entry `growth` of the config.

    Raises:
        ValueError: as for [`grow_from_pretrained`], or if `output` is not empty.
        FileNotFoundError: if there is no such source.
        OSError: if the disk is full; nothing is left at `output`.

    Example:

    ```python
    >>> grow_checkpoint("HuggingFaceTB/SmolLM2-135M", "grown", hidden_size=1152).growth_factor
    ```
    """
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
    return grow_stored(
        source, output, request, verify=verify, target_tokens=target_tokens, max_shard_size=max_shard_size
    )
