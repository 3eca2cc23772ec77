"""Grow and shrink models: an index map for each axis, one engine, a few lines for each operator."""

from hf_warmscale.resize.adapters import freeze_old_blocks, grow_adapter
from hf_warmscale.resize.grow import grow_checkpoint, grow_from_pretrained
from hf_warmscale.resize.optimizer_state import grow_optimizer_state
from hf_warmscale.resize.receipt import GrowthReceipt
from hf_warmscale.resize.shrink import shrink_checkpoint, shrink_from_pretrained
from hf_warmscale.resize.shrink_receipt import ShrinkReceipt

__all__ = [
    "GrowthReceipt",
    "ShrinkReceipt",
    "freeze_old_blocks",
    "grow_adapter",
    "grow_checkpoint",
    "grow_from_pretrained",
    "grow_optimizer_state",
    "shrink_checkpoint",
    "shrink_from_pretrained",
]
