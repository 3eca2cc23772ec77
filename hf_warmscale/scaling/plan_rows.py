"""The options of a plan: what each costs, and what the law says it ends at."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_warmscale.scaling.costs import Candidate, Cost
from hf_warmscale.scaling.scaling_law import ScalingLaw

SCRATCH, GROW, TRAIN_ON, CONTINUE, MERGE = "scratch", "grow", "train on", "continue with replay", "merge"


@dataclass(frozen=True)
class Row:
    """One option of a plan.

    Args:
        option (`str`): `"scratch"`, `"grow"`, `"train on"`, `"continue with replay"` or `"merge"`.
        base (`str`): the candidate that it starts from; empty for scratch.
        loss (`float` or `None`): predicted; `None` if the law cannot tell, or knows ratios only.
        interval (`tuple[float, float]` or `None`): of the loss of a new run, at 95 %.
        relative_loss (`float` or `None`): the loss divided by that of scratch.
        num_parameters (`int`): of the model that comes out.
        tokens (`float`): that are trained on.
        flops (`float`): of this training.
        flops_with_base (`float`): with what the base cost.
        hours (`float` or `None`): on the machine whose throughput is known.
        inference_flops (`float`): per token, of the model that comes out.
        note (`str`): what the number assumes.

    Example:

    ```python
    >>> row = plan(target=360_000_000, tokens=5e9, candidates=[(135_000_000, 2e12)]).rows[0]
    >>> row.option, row.tokens
    ('scratch', 5000000000.0)
    ```
    """

    option: str
    base: str
    loss: float | None
    interval: tuple[float, float] | None
    relative_loss: float | None
    num_parameters: int
    tokens: float
    flops: float
    flops_with_base: float
    hours: float | None
    inference_flops: float
    note: str = ""


@dataclass(frozen=True)
class BreakEven:
    """How many tokens of the target's training a base must be worth for growing to pay.

    Args:
        base (`str`): the candidate.
        over_training_on (`float` or `None`): to end as low as the candidate trained on with the same budget; 0 if the
            target from scratch already does, `None` if the target never does.
        over_scratch_with_base (`float`): to end as low as the target from scratch with the base's own compute added.
        base_tokens (`float`): what the candidate was trained on.

    Example:

    ```python
    >>> found = plan(target=360_000_000, tokens=5e9, candidates=[(135_000_000, 2e12)]).break_even[0]
    >>> found.base_tokens
    2000000000000.0
    ```
    """

    base: str
    over_training_on: float | None
    over_scratch_with_base: float
    base_tokens: float


@dataclass(frozen=True)
class Budget:
    """What may be spent, as tokens of the target or as FLOPs.

    Args:
        tokens (`float` or `None`): the same for every option.
        flops (`float` or `None`): the same for every option.
        flops_per_hour (`float` or `None`): of the machine, if it is known.
    """

    tokens: float | None
    flops: float | None
    flops_per_hour: float | None = None

    def tokens_for(self, cost: Cost) -> float:
        """Return the tokens that a model can be trained on."""
        if self.tokens is not None:
            return self.tokens
        assert self.flops is not None
        return self.flops / cost.training


@dataclass(frozen=True)
class Outlook:
    """A law, a target and a budget: all that the rows of a plan are made from."""

    law: ScalingLaw
    target: Cost
    budget: Budget
    replay: float

    def rows(self, candidates: Sequence[Candidate]) -> list[Row]:
        """Return the row of scratch and those of every candidate."""
        rows = [self._row(SCRATCH, None, self.target, self.budget.tokens_for(self.target))]
        for candidate in candidates:
            own = self.budget.tokens_for(candidate.cost)
            rows += [
                self._row(GROW, candidate, self.target, self.budget.tokens_for(self.target)),
                self._row(TRAIN_ON, candidate, candidate.cost, own),
                self._row(CONTINUE, candidate, candidate.cost, own),
                self._row(MERGE, candidate, candidate.cost, 0.0),
            ]
        return rows

    def break_even(self, candidate: Candidate) -> BreakEven:
        """Return how many tokens a candidate must be worth."""
        given = self.budget.tokens_for(self.target)
        wanted = self.law.predict(
            N=candidate.cost.num_parameters, D=candidate.tokens + self.budget.tokens_for(candidate.cost)
        )
        # By the law of models from scratch: as if a base were worth tokens of the target's own training.
        needed = tokens_to_reach(self.law, self.target.num_parameters, wanted)
        return BreakEven(
            base=candidate.cost.name,
            over_training_on=None if needed is None else max(0.0, needed - given),
            # The base's compute, spent on the target instead, buys this many of its tokens.
            over_scratch_with_base=candidate.flops / self.target.training,
            base_tokens=candidate.tokens,
        )

    def _row(self, option: str, candidate: Candidate | None, cost: Cost, tokens: float) -> Row:
        loss, interval, note = self._predicted(option, candidate, cost, tokens)
        scratch = self.law.predict(N=self.target.num_parameters, D=self.budget.tokens_for(self.target))
        flops, per_hour = cost.training * tokens, self.budget.flops_per_hour
        # Published constants belong to other data, so only the ratio of two losses is kept.
        own = not self.law.source
        return Row(
            option=option,
            base="" if candidate is None else candidate.cost.name,
            loss=loss if own else None,
            interval=interval if own else None,
            relative_loss=None if loss is None else loss / scratch,
            num_parameters=cost.num_parameters,
            tokens=tokens,
            flops=flops,
            flops_with_base=flops + (0.0 if candidate is None else candidate.flops),
            hours=None if per_hour is None else flops / per_hour,
            inference_flops=cost.inference,
            note=note,
        )

    def _predicted(
        self, option: str, candidate: Candidate | None, cost: Cost, tokens: float
    ) -> tuple[float | None, tuple[float, float] | None, str]:
        """Return loss, interval and note of an option."""
        at: dict[str, float] = {"N": cost.num_parameters, "D": tokens}
        note = ""
        if candidate is not None and self._other_vocabulary(candidate):
            return None, None, "another vocabulary: fit a law in bits per byte"
        if candidate is not None and option == GROW:
            if self.law.form != "grown":
                return None, None, "no law of grown models: see the break-even"
            at |= {"D0": candidate.tokens, "N0": candidate.cost.num_parameters}
        elif candidate is not None:
            seen = {TRAIN_ON: tokens, CONTINUE: self.replay * tokens, MERGE: 0.0}[option]
            at["D"] = candidate.tokens + seen
            note = {
                TRAIN_ON: "rewarmed and cooled again on the base's data",
                CONTINUE: f"on the base's data, {self.replay:.0%} of the tokens; the new data has no law",
                MERGE: "as if cooled where it is (2505.12082)",
            }[option]
        return self.law.predict(**at), self._interval(at), note

    def _other_vocabulary(self, candidate: Candidate) -> bool:
        sizes = {self.target.vocab_size, candidate.cost.vocab_size} - {None}
        # Nats per token of two tokenizers do not compare; bits per byte do.
        return len(sizes) > 1 and self.law.unit == "nats"

    def _interval(self, at: dict[str, float]) -> tuple[float, float] | None:
        if self.law.frame is None:
            return None
        try:
            low, high = self.law.interval(**at)
        except ValueError:
            return None
        return low, high


def tokens_to_reach(law: ScalingLaw, size: float, loss: float) -> float | None:
    """Return the tokens from scratch with which a size reaches a loss, `None` if it never does."""
    values = law.parameters
    # Solve E + A / N^alpha + B / D^beta = L for D. `left` is what the data term may be; at 0 or below, the size alone
    # keeps the model above L.
    left = loss - values["E"] - values["A"] / size ** values["alpha"]
    return None if left <= 0 else float((values["B"] / left) ** (1 / values["beta"]))
