"""One cache over the layers of all members, so that cropping and reordering it reaches all of them."""

import copy
from collections.abc import Sequence
from itertools import accumulate

from transformers import Cache, DynamicCache

from hf_warmscale.decoding.members import Member


def cover_all(cache: Cache, members: Sequence[Member]) -> Cache:
    """Give an empty cache a layer for every layer of every member, in their order; return the same cache.

    `generate` makes a cache for the base alone. One that covers all members is left as it is.

    Raises:
        ValueError: if the cache is of another kind, or holds states of other models.
    """
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"The cache is a {type(cache).__name__}, which several models cannot share; use a DynamicCache."
        )
    expected = sum(member.num_cache_layers for member in members)
    if len(cache.layers) == expected:
        return cache
    if any(_holds_states(layer) for layer in cache.layers):
        raise ValueError(
            f"The cache holds the states of {len(cache.layers)} layers, and the members have {expected}; pass a "
            "cache that this model made, or none."
        )
    # In place: `generate` holds this very object, and crops and reorders it between steps.
    cache.layers = [layer for member in members for layer in member.new_cache().layers]
    # Otherwise the cache would append layers of its own kind as they are asked for.
    cache.layer_class_to_replicate = None
    return cache


def views(cache: Cache, members: Sequence[Member]) -> list[Cache]:
    """Return a cache for each member that holds its own layers: the same objects, not copies."""
    ends = list(accumulate(member.num_cache_layers for member in members))
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        # A shallow copy has a layer list of its own over the same layer objects, so that each member counts its layers
        # from 0.
        part = copy.copy(cache)
        part.layers = cache.layers[start:end]
        parts.append(part)
    return parts


def refuse_states_that_stay(cache: Cache, members: Sequence[Member]) -> None:
    """Raise if drafts are to be taken back from states that cannot forget a token.

    transformers before 5.24 does not ask, and continues from recurrent states that have seen rejected tokens.

    Args:
        cache (`Cache`): after a forward pass, since an empty layer does not tell whether it has such states.
        members (`Sequence[Member]`): whose layers it holds.

    Raises:
        ValueError: if one has, and drafts may be rejected (the cache records the past); it names the member.
    """
    for member, part in zip(members, views(cache, members), strict=True):
        if any(getattr(layer, "record_past", False) and not layer.is_croppable for layer in part.layers):
            raise ValueError(
                f"A draft requires a cache that can be cropped, and the recurrent state of the {member.role} model "
                f"({type(member.plain).__name__}) cannot forget rejected tokens; generate without assistant_model."
            )


def _holds_states(layer: object) -> bool:
    recurrent = getattr(layer, "has_previous_state", {})  # by number of the state
    return bool(getattr(layer, "is_initialized", False)) or any(dict(recurrent).values())
