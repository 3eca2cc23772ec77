"""One sentence about a plan: what to do, or why not to grow."""

import math
from collections.abc import Sequence

from hf_warmscale.scaling.costs import Candidate, short
from hf_warmscale.scaling.plan_rows import CONTINUE, GROW, SCRATCH, BreakEven, Outlook, Row

NOISE = 0.003
"""The noise of a single run as a share of its loss: about 0.01 nats in 3 (2304.06875)."""


def advise(
    outlook: Outlook, rows: Sequence[Row], break_even: Sequence[BreakEven], candidates: Sequence[Candidate]
) -> str:
    """Return the advice of a plan.

    Args:
        outlook (`Outlook`): law, target and budget.
        rows (`Sequence[Row]`): of the plan.
        break_even (`Sequence[BreakEven]`): of every candidate.
        candidates (`Sequence[Candidate]`): in the same order.
    """
    if not candidates:
        return "There is no candidate to grow, so the target is trained from scratch."
    # A continuation ends on other data, of which the law knows nothing; its loss is that on the base's data.
    comparable = [row for row in rows if row.relative_loss is not None and row.option != CONTINUE]
    if all(row.option == SCRATCH for row in comparable):
        return "The candidates have other vocabularies, so nothing is compared; fit a law in bits per byte."
    grown = [row for row in comparable if row.option == GROW]
    if not grown:
        return _without_law(outlook, comparable, break_even)
    best, other = min(grown, key=_loss), min((row for row in comparable if row.option != GROW), key=_loss)
    if _loss(best) >= _loss(other):
        ends = f"{_name(other)} ends at {_ends(other)} and growing at {_ends(best)}"
        return f"Growing is not worth it here, because {ends}."
    if _loss(best) > (1 - NOISE) * _loss(other):
        ends = f"it ends at {_ends(best)} and {_name(other)} at {_ends(other)}"
        return f"Growing is not worth it here, because {ends}, a difference below the noise of one run ({NOISE:.1%})."
    gain = f"Grow {best.base}: it ends at {_ends(best)}, and the next best, {_name(other)}, at {_ends(other)}"
    charged = _charged(outlook, best, candidates)
    verdict = "still" if charged > _loss(best) else "no longer"
    doubt = "" if not _overlap(best, other) else "; the intervals overlap, so a single run may say otherwise"
    return f"{gain}; with the base's own compute charged, growing {verdict} beats scratch{doubt}."


def _without_law(outlook: Outlook, rows: Sequence[Row], break_even: Sequence[BreakEven]) -> str:
    """Return the advice where no law of grown models is known: what a base must be worth."""
    easiest = min(break_even, key=_share)
    needed, charged = _needed(easiest), easiest.over_scratch_with_base
    if _share(easiest) > 1:
        best = min((row for row in rows if row.option != SCRATCH), key=_loss)
        return (
            f"Growing is not worth it here, because to end as low as {_name(best)} the base would have to be worth "
            f"{short(needed)} tokens of the target's own training, and {short(easiest.base_tokens)} are behind it."
        )
    gain = max(_largest_gain(outlook, each.base_tokens) for each in break_even)
    if gain < NOISE:
        return (
            "Growing is not worth it here, because even if every token behind the base counted as one of the target's "
            f"own, the loss would fall by {gain:.2%} of scratch's, less than the noise of one run ({NOISE:.1%})."
        )
    over = (
        f"beats training it on only if the base is worth {short(needed)} tokens of the target's own training "
        f"({needed / easiest.base_tokens:.2g} of its {short(easiest.base_tokens)})"
        if needed > 0
        else "beats training it on whatever the base is worth, as the target from scratch does already"
    )
    return (
        f"Growing {easiest.base} {over}, and beats scratch with the base's compute charged only if it is worth "
        f"{short(charged)} tokens; fit a law of your own grown runs to know."
    )


def _largest_gain(outlook: Outlook, base_tokens: float) -> float:
    """Return by what share of scratch's loss growing lowers it if a base is worth all that it has seen."""
    given, size = outlook.budget.tokens_for(outlook.target), outlook.target.num_parameters
    return float(1 - outlook.law.predict(N=size, D=given + base_tokens) / outlook.law.predict(N=size, D=given))


def _needed(each: BreakEven) -> float:
    """Return the tokens that a base must be worth to beat training it on."""
    return math.inf if each.over_training_on is None else each.over_training_on


def _share(each: BreakEven) -> float:
    """Return them as a share of the tokens behind it: a base is hardly worth more than it has seen."""
    return _needed(each) / each.base_tokens


def _charged(outlook: Outlook, best: Row, candidates: Sequence[Candidate]) -> float:
    """Return the relative loss of scratch with the compute of the base added to its budget."""
    base = next(candidate for candidate in candidates if candidate.cost.name == best.base)
    given = outlook.budget.tokens_for(outlook.target)
    size = outlook.target.num_parameters
    more = outlook.law.predict(N=size, D=given + base.flops / outlook.target.training)
    return float(more / outlook.law.predict(N=size, D=given))


def _loss(row: Row) -> float:
    assert row.relative_loss is not None
    return row.relative_loss


def _name(row: Row) -> str:
    return {SCRATCH: "the target from scratch"}.get(row.option, f"{row.option} {row.base}")


def _ends(row: Row) -> str:
    return f"{row.relative_loss:.3f} of scratch's loss" if row.loss is None else f"{row.loss:.3f}"


def _overlap(one: Row, two: Row) -> bool:
    """Tell whether the intervals of two rows, if both have one, overlap."""
    if one.interval is None or two.interval is None:
        return False
    return one.interval[0] <= two.interval[1] and two.interval[0] <= one.interval[1]
