"""Change one size at a time on the meta device and read the axis of each dimension from the shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from hf_warmscale.architecture.fields import find_field
from hf_warmscale.architecture.layouts import UnknownLayoutError, candidates
from hf_warmscale.architecture.model_map import Axis, Dimension
from hf_warmscale.architecture.tiny import OTHER, TINY, axes_of, build_meta, has_latent_heads, named_state, tiny_config

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[Axis, int]


@dataclass(frozen=True)
class Probe:
    """The axes of an architecture, as far as shapes show them.

    Args:
        sizes (`Mapping[Axis, int]`): the sizes of the tiny reference model, derived ones included.
        law (`SizeLaw`): how sizes follow from one another.
        choices (`Mapping[str, tuple[list[Dimension], ...]]`): for every parameter and dimension the layouts that fit.
    """

    sizes: Sizes
    law: "SizeLaw"
    choices: Mapping[str, tuple[list[Dimension], ...]]


@dataclass(frozen=True)
class SizeLaw:
    """How the sizes of an architecture follow from those that its config can set.

    Args:
        settable (`frozenset[Axis]`): axes with a config field that the model obeys.
        derives_head_dim (`bool`): head_dim is hidden / heads, whatever the config says.
        intermediate_ratio (`int` or `None`): intermediate size / hidden size where the family fixes it (BLOOM: 4).
    """

    settable: frozenset[Axis]
    derives_head_dim: bool = False
    intermediate_ratio: int | None = None

    @property
    def derived(self) -> frozenset[Axis]:
        """Return the axes that follow from others."""
        derived = {Axis.HEAD_DIM} if self.derives_head_dim else set()
        return frozenset(derived | ({Axis.INTERMEDIATE} if self.intermediate_ratio else set()))

    def complete(self, sizes: Sizes) -> Sizes:
        """Return `sizes` made consistent: where head_dim follows from hidden / heads, hidden = heads x head_dim."""
        full = dict(sizes)
        if self.derives_head_dim:
            full[Axis.HIDDEN] = full[Axis.HEADS] * full[Axis.HEAD_DIM]
        if self.intermediate_ratio:
            full[Axis.INTERMEDIATE] = self.intermediate_ratio * full[Axis.HIDDEN]
        return full

    def settings(self, sizes: Sizes) -> Sizes:
        """Return the part of `sizes` that the config can set."""
        return {axis: size for axis, size in sizes.items() if axis in self.settable}


def probe(config: PreTrainedConfig, layers: int) -> Probe:
    """Read the axes of every dimension of an architecture from its shapes at `layers` layers.

    Raises:
        ValueError: if a dimension changes in a way that no known layout explains; names the tensor.
    """
    law = _find_law(config, layers)
    observed = _observe(config, law, layers)
    sizes, shapes = observed[0]
    choices = {
        name: tuple(_fitting(config, name, dim, observed) for dim in range(len(shape)))
        for name, shape in shapes.items()
    }
    return Probe(sizes=sizes, law=law, choices=choices)


def _fitting(config: PreTrainedConfig, name: str, dim: int, observed: list[tuple[Sizes, Shapes]]) -> list[Dimension]:
    fitting = candidates([(sizes, shapes[name][dim]) for sizes, shapes in observed])
    if not fitting:
        raise UnknownLayoutError(
            f"{config.model_type}: dimension {dim} (size {observed[0][1][name][dim]}) of {name} follows no layout "
            "that is known; add its inner order to hf_warmscale/architecture/layouts.py."
        )
    return fitting


def _observe(config: PreTrainedConfig, law: SizeLaw, layers: int) -> list[tuple[Sizes, Shapes]]:
    """Return the shapes at the reference sizes, then with each axis changed; axes that change nothing are left out."""
    reference = law.complete({axis: TINY[axis] for axis in TINY if axis in law.settable | law.derived})
    observed = [(reference, _shapes(config, law, reference, layers))]
    dead = set()
    for axis in reference:
        # A derived axis moves with those that it follows from, never alone. Only HEAD_DIM is varied although it is
        # derived: `complete` then moves the hidden size.
        follows = axis is Axis.HIDDEN if law.derives_head_dim else False
        if follows or axis in law.derived - {Axis.HEAD_DIM}:
            continue
        sizes = law.complete({**reference, axis: OTHER[axis]})
        shapes = _shapes(config, law, sizes, layers)
        if shapes == observed[0][1]:
            dead.add(axis)
        observed.append((sizes, shapes))
    return [({axis: size for axis, size in sizes.items() if axis not in dead}, shapes) for sizes, shapes in observed]


def _find_law(config: PreTrainedConfig, layers: int) -> SizeLaw:
    settable = axes_of(config)
    for axis in (Axis.HEADS, Axis.HIDDEN, Axis.VOCAB, Axis.LAYERS):
        if find_field(config, axis) is None:
            raise ValueError(f"{config.model_type} has no config field for {axis}, so it is not described.")
    law = SizeLaw(settable)
    if not has_latent_heads(config):
        obeyed = Axis.HEAD_DIM in settable and _obeys_head_dim(config, law, layers)
        if not (obeyed and _runs_at_any_head_dim(config, law, layers)):
            law = SizeLaw(settable if obeyed else settable - {Axis.HEAD_DIM}, derives_head_dim=True)
    if Axis.INTERMEDIATE not in settable:
        law = replace(law, intermediate_ratio=_intermediate_ratio(config, law, layers))
    return law


def _obeys_head_dim(config: PreTrainedConfig, law: SizeLaw, layers: int) -> bool:
    sizes = {axis: TINY[axis] for axis in law.settable}
    try:
        before = _shapes(config, law, sizes, layers)
        after = _shapes(config, law, {**sizes, Axis.HEAD_DIM: OTHER[Axis.HEAD_DIM]}, layers)
    except (ValueError, AssertionError, RuntimeError):  # hidden != heads x head_dim is refused
        return False
    return before != after


def _runs_at_any_head_dim(config: PreTrainedConfig, law: SizeLaw, layers: int) -> bool:
    """Tell whether hidden may differ from heads x head_dim (Helium has the field, but its projections do not fit).

    Routers and scans may not run on the meta device whatever the sizes, so two failures count only if they differ.
    """
    apart = {axis: TINY[axis] for axis in law.settable}
    failure = _failure(config, apart, layers)
    return failure is None or failure == _failure(
        config, {**apart, Axis.HIDDEN: TINY[Axis.HEADS] * TINY[Axis.HEAD_DIM]}, layers
    )


def _failure(config: PreTrainedConfig, sizes: Sizes, layers: int) -> str | None:
    """Return the error of a model of these sizes on the meta device; `None` if it runs."""
    try:
        with torch.no_grad():
            model = build_meta(tiny_config(config, {**sizes, Axis.LAYERS: layers}))
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"))
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def _intermediate_ratio(config: PreTrainedConfig, law: SizeLaw, layers: int) -> int | None:
    sizes = law.complete({axis: TINY[axis] for axis in law.settable | law.derived})
    hidden = sizes[Axis.HIDDEN]
    shapes = set(_shapes(config, law, sizes, layers).values())
    for ratio in (4, 2, 3):
        # Both directions must occur: a fused query-key-value matrix is (3 hidden, hidden) alone.
        if {(ratio * hidden, hidden), (hidden, ratio * hidden)} <= shapes:
            return ratio
    return None


def _shapes(config: PreTrainedConfig, law: SizeLaw, sizes: Sizes, layers: int) -> Shapes:
    model = build_meta(tiny_config(config, {**law.settings(sizes), Axis.LAYERS: layers}))
    return {name: tuple(tensor.shape) for name, tensor in named_state(model).items()}
