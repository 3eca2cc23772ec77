"""What flash and flex attention compute, in plain torch: for proofs on machines that cannot run them.

Flash attention needs a GPU, and flex attention compiles for minutes on a CPU. The functions here get the arguments
that transformers would give to the real ones, and use no other information about where documents begin.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask, flex_attention_mask

FLASH, FLEX = "warmscale_varlen", "warmscale_block_mask"


def stand_in_for(attention: str) -> str:
    """Return the attention implementation to prove with: a stand-in for flash and flex attention, else the same."""
    if "flash" in attention:
        AttentionInterface.register(FLASH, flash_stand_in)
        AttentionMaskInterface.register(FLASH, flash_attention_mask)
        return FLASH
    if attention == "flex_attention":
        AttentionInterface.register(FLEX, flex_stand_in)
        AttentionMaskInterface.register(FLEX, flex_attention_mask)
        return FLEX
    return attention


def flash_stand_in(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend within the documents that `position_ids` separate, if the batch is one row; else within rows.

    transformers gives flash attention no mask for packed rows. It finds the documents of a batch of one row by its
    positions, and of a larger batch not at all.
    """
    tokens = torch.arange(query.shape[2], device=query.device)
    distance = tokens[:, None] - tokens
    visible = distance >= 0
    if sliding_window is not None:
        visible = visible & (distance < sliding_window)
    if position_ids is not None and len(query) == 1:
        # A document begins wherever the lowest position recurs; the running count numbers them.
        document = (position_ids.reshape(-1) == position_ids.min()).cumsum(0)
        visible = visible & (document[:, None] == document)
    return _attend(query, key, value, visible, **settings), None


def flex_stand_in(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask, **settings: Any
) -> tuple[Tensor, None]:
    """Attend where the block mask allows it."""
    visible = create_mask(
        attention_mask.mask_mod, len(query), 1, query.shape[2], key.shape[2], device=str(query.device)
    )
    return _attend(query, key, value, visible, **settings), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Return `[batch, tokens, heads, head_dim]`.

    Args:
        query, key, value: `[batch, heads, tokens, head_dim]`; keys and values may have fewer heads.
        visible: whether a query sees a key, `[..., tokens, tokens]`.
        scaling, softcap, s_aux: of the scores; `s_aux`, `[heads]`, are attention sinks: logits of an extra key.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The lowest finite number, not minus infinity: a row in which nothing is visible would become NaN.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if s_aux is None:
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous()
    sink = s_aux.to(scores.dtype).reshape(1, -1, 1, 1).expand(len(scores), -1, scores.shape[-2], 1)
    # A sink takes its part of the softmax and gives no value.
    weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return (weights @ value).transpose(1, 2).contiguous()
