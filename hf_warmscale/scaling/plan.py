"""What to do with a budget: train from scratch, grow, train on, continue, or merge."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_warmscale.scaling.advice import advise
from hf_warmscale.scaling.costs import (
    Candidate,
    CandidateSource,
    Cost,
    ModelOrSize,
    candidate_of,
    config_at_source,
    cost_of,
    short,
)
from hf_warmscale.scaling.plan_rows import BreakEven, Budget, Outlook, Row
from hf_warmscale.scaling.published import published
from hf_warmscale.scaling.scaling_law import ScalingLaw
from hf_warmscale.scaling.throughput import measure_throughput

REPLAY = 0.05


@dataclass(frozen=True)
class Plan:
    """The options of a budget.

    Args:
        rows (`list[Row]`): one per option.
        advice (`str`): one sentence.
        break_even (`list[BreakEven]`): one per candidate: how many tokens it must be worth for growing to pay.
        assumptions (`list[str]`): what the numbers take for granted.

    Example:

    ```python
    >>> chosen = plan(target=360_000_000, tokens=5e9)
    >>> [row.option for row in chosen.rows]
    ['scratch']
    ```
    """

    rows: list[Row]
    advice: str
    break_even: list[BreakEven]
    assumptions: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan, ready for JSON."""
        return asdict(self)

    def table(self) -> list[dict[str, object]]:
        """Return the rows for people, without columns that are empty; FLOPs at inference are per token."""
        rows: list[dict[str, object]] = [
            {
                "option": f"{row.option} {row.base}".strip(),
                "loss": None if row.loss is None else f"{row.loss:.3f}",
                "95 %": None if row.interval is None else f"{row.interval[0]:.3f}-{row.interval[1]:.3f}",
                "of scratch": None if row.relative_loss is None else f"{row.relative_loss:.3f}",
                "tokens": short(row.tokens),
                "FLOPs": f"{row.flops:.1e}",
                "with base": f"{row.flops_with_base:.1e}",
                "hours": None if row.hours is None else f"{row.hours:.3g}",
                "inference": f"{row.inference_flops:.1e}",
            }
            for row in self.rows
        ]
        filled = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        return [{name: row[name] for name in filled} for row in rows]


def plan(
    *,
    target: PreTrainedConfig | int | str | os.PathLike[str],
    tokens: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    candidates: Sequence[CandidateSource] = (),
    law: ScalingLaw | None = None,
    sequence_length: int = 2048,
    tokens_per_second: float | None = None,
    batch_size: int = 1,
    replay: float = REPLAY,
) -> Plan:
    """Compare what a budget buys: the target from scratch, grown from a candidate, or a candidate trained on.

    Args:
        target (`PreTrainedConfig`, `int`, `str` or `PathLike`): the model wanted: a config, its parameters, or a
            checkpoint whose config to take.
        tokens (`float`, *optional*): the budget in tokens, the same for every option.
        flops (`float`, *optional*): instead, in FLOPs, the same for every option.
        hours (`float`, *optional*): instead, in hours of this machine.
        candidates (`Sequence[tuple]`): models that exist: (checkpoint, config or parameters; tokens behind it). `None`
            for the tokens reads them from the folder of a run.
        law (`ScalingLaw`, *optional*): by default published constants, which give ratios only. A law of the form
            `"grown"` predicts grown models; others give the break-even.
        sequence_length (`int`): tokens in a row; decides the share of attention in the FLOPs.
        tokens_per_second (`float`, *optional*): of the target's training; with `hours` and a config it is measured by
            20 steps of the live model.
        batch_size (`int`): rows in a step of that measurement.
        replay (`float`): the share of the base's own data when a candidate is continued on other data.

    Returns:
        `Plan`: rows, one sentence of advice, break-even and assumptions.

    Raises:
        ValueError: unless exactly one budget is given, and for a candidate larger than the target.

    Example:

    ```python
    >>> chosen = plan(target=360_000_000, tokens=5e9, candidates=[(135_000_000, 2e12)])
    >>> [(row.option, round(row.relative_loss or 0, 3)) for row in chosen.rows[:3]]
    [('scratch', 1.0), ('grow', 0), ('train on', 0.891)]

    ```
    """
    _refuse_budgets(tokens=tokens, flops=flops, hours=hours)
    if not 0 <= replay < 1:
        raise ValueError(f"replay is {replay:g}; give a share from 0 to below 1.")
    law = law or published()
    if law.form == "power":
        raise ValueError("The law is one at fixed data, so it says nothing of budgets; fit one with several D.")
    embeddings = law.embeddings is not False
    cost = cost_of(target, sequence_length=sequence_length, embeddings=embeddings)
    known = [candidate_of(each, sequence_length=sequence_length, embeddings=embeddings) for each in candidates]
    _refuse_larger(cost, known)
    if cost.estimated or any(each.cost.estimated for each in known):
        # With attention counted on one side only, a small model could seem to cost more than a larger one.
        cost, known = cost.by_size(), [each.by_size() for each in known]
    if hours is not None and tokens_per_second is None:
        tokens_per_second = _measured(target, sequence_length, batch_size)
    per_hour = None if tokens_per_second is None else 3600 * tokens_per_second * cost.training
    budget = Budget(tokens, hours * per_hour if hours is not None and per_hour is not None else flops, per_hour)
    outlook = Outlook(law, cost, budget, replay)
    rows, break_even = outlook.rows(known), [outlook.break_even(candidate) for candidate in known]
    return Plan(
        rows=rows,
        advice=advise(outlook, rows, break_even, known),
        break_even=break_even,
        assumptions=_assumptions(outlook, known, tokens_per_second),
    )


def _refuse_budgets(**budgets: float | None) -> None:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        named = " and ".join(given) or "none"
        raise ValueError(f"A plan needs one budget, not {named}; give tokens, flops or hours.")
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"The budget of {value:g} {name} buys nothing; give a positive number.")


def _refuse_larger(target: Cost, candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        own, wanted = candidate.cost.num_parameters, target.num_parameters
        if own >= wanted:
            raise ValueError(
                f"The candidate {candidate.cost.name} has {own:,} parameters, not fewer than the target's {wanted:,}; "
                "shrink it, or name a larger target."
            )


def _measured(target: ModelOrSize, sequence_length: int, batch_size: int) -> float:
    if isinstance(target, int):
        raise ValueError("A budget in hours needs tokens_per_second, or a config whose model can be timed.")
    config = target if isinstance(target, PreTrainedConfig) else config_at_source(target)
    return measure_throughput(config, sequence_length=sequence_length, batch_size=batch_size)


def _assumptions(outlook: Outlook, candidates: Sequence[Candidate], tokens_per_second: float | None) -> list[str]:
    law = outlook.law
    lines = [
        f"The law is {law.source}: of other data and another vocabulary, so only ratios count."
        if law.source
        else f"The law is your own, fitted to {0 if law.frame is None else len(law.frame)} points.",
        "All options train on the base's kind of data at rates as well tuned as the law's runs, and end cooled.",
    ]
    costs = [outlook.target, *(candidate.cost for candidate in candidates)]
    if any(cost.estimated for cost in costs):
        lines.append(
            "One model is known by its size alone, so each costs 6 N FLOPs per token in training and 2 N at inference."
        )
    for candidate in candidates:
        factor = outlook.target.num_parameters / candidate.cost.num_parameters
        lines.append(
            f"{candidate.cost.name} would grow {factor:.3g}-fold in parameters; twofold is the reliable case "
            "(2605.13405)."
        )
    if tokens_per_second is not None:
        lines.append(f"The target trains at {tokens_per_second:.4g} tokens per second, others in proportion to FLOPs.")
    return lines if law.source else [*lines, *_reach(outlook, candidates), *law.flags]


def _reach(outlook: Outlook, candidates: Sequence[Candidate]) -> list[str]:
    """Return how far the plan goes beyond the points of its law, if it does."""
    frame, asked = outlook.law.frame, outlook.budget.tokens_for(outlook.target)
    if frame is None:
        return []
    tokens = max([asked, *(each.tokens + outlook.budget.tokens_for(each.cost) for each in candidates)])
    factors = {"parameters": outlook.target.num_parameters / frame.N.max(), "tokens": tokens / frame.D.max()}
    far = [f"{factor:.3g} times the most {name}" for name, factor in factors.items() if factor > 1]
    return [f"The plan goes beyond the points of the law: to {' and '.join(far)}."] if far else []
