"""Which block of the source each block of the target copies."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_warmscale.options import DEPTHS, DepthOperator


@dataclass(frozen=True)
class LayerMap:
    """The map of the layer axis.

    Args:
        source (`tuple[int, ...]`): for each target block the source block that it copies.
        zero_initialised (`frozenset[int]`): target blocks whose output projections start at zero, so that they add
            nothing to the residual stream.
    """

    source: tuple[int, ...]
    zero_initialised: frozenset[int] = frozenset()

    def is_identity(self, layers: int) -> bool:
        """Tell whether the depth stays the same."""
        return self.source == tuple(range(layers)) and not self.zero_initialised


def layer_map(
    operator: DepthOperator, layers: int, target: int, insert_after: Sequence[int] | None = None
) -> LayerMap:
    """Return the map that takes `layers` blocks to `target` blocks.

    - `"stack"` repeats the whole stack (G_stack, arXiv:2405.15319).
    - `"interleave"` repeats each block in place.
    - `"identity"` inserts zero-initialised copies (LLaMA-Pro, arXiv:2401.02415), evenly or after chosen blocks.
    - `"dus"` joins two copies of the stack and drops `layers - target / 2` blocks of each at the seam (depth
      up-scaling, SOLAR, arXiv:2312.15166).

    Args:
        operator (`str`): one of the four.
        layers (`int`): blocks of the source.
        target (`int`): blocks of the target.
        insert_after (`Sequence[int]`, *optional*): for `"identity"`, the source block that each new block follows; a
            block may be named more than once.

    Raises:
        ValueError: if the operator cannot reach the target, or a block of `insert_after` does not exist.
    """
    if insert_after is not None and operator != "identity":
        raise ValueError(f"insert_after applies to the depth operator identity, not to {operator}; leave it out.")
    if operator not in DEPTHS:
        raise ValueError(f"The depth operator {operator!r} is unknown; use stack, interleave, identity or dus.")
    if target == layers and not insert_after:
        return LayerMap(tuple(range(layers)))
    if operator == "stack":
        return LayerMap(tuple(layer % layers for layer in range(target)))
    if operator == "interleave":
        # Where `target` is not a multiple of `layers`, the blocks that occur once more are spread evenly.
        return LayerMap(tuple(layer * layers // target for layer in range(target)))
    if operator == "dus":
        return _depth_up_scaling(layers, target)
    return _insert(layers, target, insert_after)


def _depth_up_scaling(layers: int, target: int) -> LayerMap:
    if target % 2 or target > 2 * layers:
        raise ValueError(
            f"dus makes an even number of blocks, at most {2 * layers} from {layers}, and cannot make {target}; "
            "choose another number or another depth operator."
        )
    half = target // 2
    return LayerMap((*range(half), *range(layers - half, layers)))


def _insert(layers: int, target: int, insert_after: Sequence[int] | None) -> LayerMap:
    count = target - layers
    # The i-th of `count` new blocks follows block ceil((i + 1) * layers / count) - 1: the last one ends the stack.
    evenly = [-(-(i + 1) * layers // count) - 1 for i in range(count)] if count else []
    places = sorted(insert_after) if insert_after is not None else evenly
    if len(places) != count:
        raise ValueError(
            f"Growing {layers} blocks to {target} adds {count}, but insert_after names {len(places)} places."
        )
    if any(not 0 <= place < layers for place in places):
        raise ValueError(f"insert_after is {places}, but the source only has the blocks 0 to {layers - 1}.")
    source: list[int] = []
    new_blocks: set[int] = set()
    for layer in range(layers):
        new = places.count(layer)
        # The block itself keeps the first place, len(source); its copies follow and start at zero.
        new_blocks |= {len(source) + 1 + i for i in range(new)}
        source += [layer] * (1 + new)
    return LayerMap(tuple(source), frozenset(new_blocks))
