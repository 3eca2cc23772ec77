"""One sentence about a plan: what to do, or why not to grow."""

from collections.abc import Sequence

from hf_warmscale.scaling.costs import Candidate, short
from hf_warmscale.scaling.plan_rows import CONTINUE, GROW, SCRATCH, BreakEven, Outlook, Row


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
    comparable = [row for row in rows if row.relative_loss is not None and row.option != CONTINUE]
    grown = [row for row in comparable if row.option == GROW]
    if not grown:
        return _without_law(outlook, comparable, break_even)
    best, other = min(grown, key=_loss), min((row for row in comparable if row.option != GROW), key=_loss)
    if _loss(best) >= _loss(other):
        ends = f"{_name(other)} ends at {_ends(other)} and growing at {_ends(best)}"
        return f"Growing is not worth it here, because {ends}."
    gain = f"Grow {best.base}: it ends at {_ends(best)}, and the next best, {_name(other)}, at {_ends(other)}"
    charged = _charged(outlook, best, candidates)
    verdict = "still" if charged > _loss(best) else "no longer"
    doubt = "" if _separate(best, other) else "; the intervals overlap, so a single run may say otherwise"
    return f"{gain}; with the base's own compute charged, growing {verdict} beats scratch{doubt}."


def _without_law(outlook: Outlook, rows: Sequence[Row], break_even: Sequence[BreakEven]) -> str:
    """Return the advice where no law of grown models is known: what a base must be worth."""
    scratch = next(row for row in rows if row.option == SCRATCH)
    reachable = [each for each in break_even if each.over_training_on is not None]
    if not reachable:
        best = min((row for row in rows if row.option != SCRATCH), key=_loss, default=scratch)
        return (
            f"Growing is not worth it here, because {_name(best)} ends lower than a model of "
            f"{short(outlook.target.num_parameters)} parameters can with any number of tokens."
        )
    easiest = min(reachable, key=lambda each: (each.over_training_on or 0.0) / each.base_tokens)
    needed = easiest.over_training_on or 0.0
    charged = easiest.over_scratch_with_base
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


def _separate(one: Row, two: Row) -> bool:
    """Tell whether the intervals of two rows do not overlap."""
    if one.interval is None or two.interval is None:
        return False
    return one.interval[1] < two.interval[0] or two.interval[1] < one.interval[0]
