"""Grow and shrink models: an index map for each axis, one engine, a few lines for each operator."""

from hf_warmscale.resize.adapters import freeze_old_blocks, grow_adapter
from hf_warmscale.resize.grow import grow_checkpoint, grow_from_pretrained
from hf_warmscale.resize.growing.receipt import GrowthReceipt
from hf_warmscale.resize.optimizer.state import grow_optimizer_state
from hf_warmscale.resize.shrink import shrink_checkpoint, shrink_from_pretrained
from hf_warmscale.resize.shrinking.shrink_receipt import ShrinkReceipt
from hf_warmscale.resize.vocabulary import extend_tokenizer, grow_vocabulary

__all__ = [
    "GrowthReceipt",
    "ShrinkReceipt",
    "extend_tokenizer",
    "freeze_old_blocks",
    "grow_adapter",
    "grow_checkpoint",
    "grow_from_pretrained",
    "grow_optimizer_state",
    "grow_vocabulary",
    "shrink_checkpoint",
    "shrink_from_pretrained",
]
