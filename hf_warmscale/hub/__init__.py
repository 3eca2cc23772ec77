"""Cards from receipts, and the way to the Hub."""

from hf_warmscale.hub.cards import make_card
from hf_warmscale.hub.push import push_to_hub

__all__ = ["make_card", "push_to_hub"]
