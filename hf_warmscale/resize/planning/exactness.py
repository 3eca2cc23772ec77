"""Where an operator that means to keep the logits cannot."""

from hf_warmscale.architecture import Axis, flat_index
from hf_warmscale.resize.planning.axis_map import is_uniform
from hf_warmscale.resize.planning.operators import ZeroPad
from hf_warmscale.resize.planning.plan import Plan


def means_exact(plan: Plan) -> bool:
    """Tell whether the operators of a plan leave the logits as they are, if the family has no surprise for them."""
    return plan.operator.keeps_logits and width_obstacle(plan) is None and _blocks_stay(plan)


def width_obstacle(plan: Plan) -> str | None:
    """Return why growing these widths moves the logits, with the remedy; `None` if nothing is known to."""
    for axis, reason in plan.source.frozen.items():
        if plan.target.sizes[axis] != plan.source.sizes[axis]:
            return f"{axis} changes, but {reason}; leave it as it is"
    return _uneven_norm(plan) if plan.operator.divides else _unpadded_norm(plan)


def _uneven_norm(plan: Plan) -> str | None:
    """A norm weighs every coordinate alike, so all must be copied equally often."""
    for norm in plan.source.norms:
        gain = plan.source.parameters.get(f"{norm}.weight")
        if gain is None:
            continue
        for dimension in gain.dimensions:
            index = flat_index(dimension, plan.source.sizes, plan.axes)
            if not is_uniform(index):
                size = sum(block.size(plan.source.sizes) for block in dimension)
                return f"{norm} would copy {size} coordinates to {len(index)} unevenly; take a multiple, or zero_pad"
    return None


def _unpadded_norm(plan: Plan) -> str | None:
    """Zero padding rescales the stream, which norms that are themselves the stream do not follow."""
    if not isinstance(plan.operator, ZeroPad) or Axis.HIDDEN not in plan.axes:
        return None
    for norm in plan.source.norms.values():
        if norm.position in ("residual", "embedding") or (norm.position == "post" and norm.centered):
            smaller = plan.target.sizes[Axis.HIDDEN] < plan.source.sizes[Axis.HIDDEN]
            remedy = "leave the hidden size as it is" if smaller else "use clone with a multiple of the hidden size"
            return f"{norm.module} normalises the residual stream itself; {remedy}"
    return None


def _blocks_stay(plan: Plan) -> bool:
    """Tell whether, apart from blocks that write nothing, every block of the source comes once and in its order."""
    kept = [layer for place, layer in enumerate(plan.layers.source) if place not in plan.layers.silent]
    return kept == list(range(plan.source.sizes[Axis.LAYERS]))
