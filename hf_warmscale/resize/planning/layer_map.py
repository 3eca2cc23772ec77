"""Which block of the source each block of the target copies."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_warmscale.options import DEPTHS, DepthOperator


@dataclass(frozen=True)
class LayerMap:
    """The map of the layer axis.

    Args:
        source (`tuple[int, ...]`): for each target block the source block it copies.
        silent (`frozenset[int]`): target blocks that write nothing to the residual stream at first.
    """

    source: tuple[int, ...]
    silent: frozenset[int] = frozenset()

    def is_identity(self, layers: int) -> bool:
        """Tell whether the depth stays as it is."""
        return self.source == tuple(range(layers)) and not self.silent


def layer_map(
    operator: DepthOperator, layers: int, target: int, insert_after: Sequence[int] | None = None
) -> LayerMap:
    """Return the map that takes `layers` blocks to `target` blocks.

    - `"stack"` repeats the whole stack (G_stack, arXiv:2405.15319).
    - `"interleave"` repeats each block in place.
    - `"identity"` inserts copies that write nothing (LLaMA-Pro, arXiv:2401.02415), evenly or after chosen blocks.
    - `"dus"` joins two copies of the stack and drops `layers - target / 2` blocks of each at the seam (SOLAR,
      arXiv:2312.15166).

    Args:
        operator (`str`): one of the four.
        layers (`int`): blocks of the source.
        target (`int`): blocks of the target.
        insert_after (`Sequence[int]`, *optional*): for `"identity"`, the source block before each new one; a block may
            be named more than once.

    Raises:
        ValueError: if the target cannot be reached, or a place does not exist.
    """
    if insert_after is not None and operator != "identity":
        raise ValueError(f"insert_after places the new blocks of the depth operator identity, not of {operator}.")
    if operator not in DEPTHS:
        raise ValueError(f"The depth operator {operator!r} is unknown; use stack, interleave, identity or dus.")
    if target == layers and not insert_after:
        return LayerMap(tuple(range(layers)))
    if operator == "stack":
        return LayerMap(tuple(layer % layers for layer in range(target)))
    if operator == "interleave":
        return LayerMap(tuple(layer * layers // target for layer in range(target)))
    if operator == "dus":
        return _depth_up_scaling(layers, target)
    return _insert(layers, target, insert_after)


def _depth_up_scaling(layers: int, target: int) -> LayerMap:
    if target % 2 or target > 2 * layers:
        raise ValueError(
            f"Depth up-scaling makes an even number of blocks, at most {2 * layers} from {layers}; {target} is not."
        )
    kept = target // 2
    return LayerMap((*range(kept), *range(layers - kept, layers)))


def _insert(layers: int, target: int, insert_after: Sequence[int] | None) -> LayerMap:
    count = target - layers
    evenly = [] if not count else [-(-(i + 1) * layers // count) - 1 for i in range(count)]
    places = sorted(insert_after) if insert_after is not None else evenly
    if len(places) != count:
        raise ValueError(f"{target} blocks from {layers} are {count} new ones, but {len(places)} places are named.")
    if any(not 0 <= place < layers for place in places):
        raise ValueError(f"The new blocks are to follow {places}, but the source has the blocks 0 to {layers - 1}.")
    source: list[int] = []
    silent: set[int] = set()
    for layer in range(layers):
        new = places.count(layer)
        silent |= {len(source) + 1 + i for i in range(new)}
        source += [layer] * (1 + new)
    return LayerMap(tuple(source), frozenset(silent))
