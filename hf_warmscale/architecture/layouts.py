"""The possible inner orders of a dimension of a weight, which shapes do not show."""

from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedConfig

from hf_warmscale.architecture.model_map import Axis, Block, Dimension

Sizes = Mapping[Axis, int]

_QUERY = Block((Axis.HEADS, Axis.HEAD_DIM))
_KEY = Block((Axis.KV_HEADS, Axis.HEAD_DIM))

PLAIN: tuple[Dimension, ...] = (
    *((Block((axis,)),) for axis in Axis if axis is not Axis.LAYERS),
    (_QUERY,),
    (_KEY,),
    (Block((Axis.EXPERTS, Axis.EXPERT_INTERMEDIATE)),),  # DBRX: all experts in one matrix
    (Block((Axis.EXPERTS, Axis.INTERMEDIATE)),),
)

FUSED: tuple[Dimension, ...] = (
    (Block((Axis.HEADS, 3, Axis.HEAD_DIM)),),  # GPT-NeoX, BLOOM, Persimmon: q, k, v within each head
    (_QUERY, _QUERY, _QUERY),  # GPT-2, MPT: q | k | v
    (_QUERY, _KEY, _KEY),  # Phi-3, GLM: q | k | v with grouped keys
    (_QUERY, Block((Axis.HEAD_DIM,)), Block((Axis.HEAD_DIM,))),  # GPT-BigCode, Falcon-7B: one key, one value
    (Block((Axis.HEADS, 2, Axis.HEAD_DIM)),),  # Qwen3-Next: query and gate within each head
    *((Block((axis,)), Block((axis,))) for axis in (Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE)),  # gate | up
    *((Block((axis, 2)),) for axis in (Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE)),  # GPT-OSS: gate, up in turn
    (Block((Axis.SHARED_INTERMEDIATE,)), Block((Axis.SHARED_INTERMEDIATE,))),  # GraniteMoeShared
    (Block((Axis.HIDDEN,)),) * 3,  # LFM2's short convolution: two gates | what is convolved
)
"""All known fused orders, each with a family that has it; a tensor that fits none is refused by name."""

SCALED: tuple[Axis, ...] = (Axis.HEADS, Axis.KV_HEADS, Axis.EXPERT_INTERMEDIATE)
"""Axes that occur with a constant factor (latent attention: heads x 192; several shared experts in one matrix)."""


class UnknownLayoutError(ValueError):
    """An architecture can be built, but the layout of its weights is not certain."""


def candidates(observed: Sequence[tuple[Sizes, int]]) -> list[Dimension]:
    """Return every known layout that fits the size of a dimension in all observed models.

    Args:
        observed (`Sequence[tuple[Mapping[Axis, int], int]]`): pairs of (sizes of the axes, size of the dimension);
            the first is the reference.

    Returns:
        `list[Dimension]`: a dimension that never changes is one constant block; empty if nothing known fits.
    """
    first = observed[0][1]
    if all(size == first for _, size in observed):
        return [(Block((first,)),)]
    # An axis that changes no shape is not among the sizes, so a layout with it cannot be checked.
    live = set(observed[0][0])
    known = [layout for layout in (*PLAIN, *FUSED, *_scaled(observed[0])) if _axes(layout) <= live]
    return [layout for layout in dict.fromkeys(known) if all(_size(layout, sizes) == size for sizes, size in observed)]


def _scaled(reference: tuple[Sizes, int]) -> Iterable[Dimension]:
    sizes, size = reference
    for axis in SCALED:
        if axis in sizes and size % sizes[axis] == 0 and size // sizes[axis] > 1:
            # The constant is unknown, so it is read off the reference; the other sizes must then confirm it.
            constant = size // sizes[axis]
            whole = axis is Axis.EXPERT_INTERMEDIATE
            yield (Block((axis,)),) * constant if whole else (Block((axis, constant)),)


def _axes(layout: Dimension) -> set[Axis]:
    return {factor for block in layout for factor in block.factors if isinstance(factor, Axis)}


def _size(layout: Dimension, sizes: Sizes) -> int:
    return sum(block.size(sizes) for block in layout)


def heads_differ(config: PreTrainedConfig) -> bool:
    """Tell whether attention adds a bias of its own to each head (ALiBi), so that heads are not interchangeable."""
    return config.model_type in _ALIBI or bool(config.to_dict().get("alibi"))


_ALIBI = frozenset({"bloom", "mpt"})
"""The model types that always do."""
