"""Score a merge on the domains of a search: objectives, limits, and how soon to stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_warmscale.evaluation import DocumentNLL
from hf_warmscale.merging.combine import CheckpointWeights, Combiner
from hf_warmscale.merging.objectives.objective import Yardstick, score, score_against

Scores = Mapping[str, DocumentNLL]

STOPPED = "stopped_early"
VIOLATIONS = "violations"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a trial gave.

    Args:
        values (`tuple[float, ...]`): the objectives, nats per token.
        violations (`Mapping[str, float]`): by how many nats each limited domain exceeds its limit.
        scores (`Scores`): by domain, as far as scored.
        stopped (`bool`): it was clearly worse than the incumbent and not scored on all documents.
    """

    values: tuple[float, ...]
    violations: Mapping[str, float]
    scores: Scores
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what is kept with the trial, ready for JSON."""
        return {
            "means": {domain: scores.mean for domain, scores in self.scores.items()},
            "tokens": {domain: int(scores.tokens.sum()) for domain, scores in self.scores.items()},
            "documents": sum(len(scores) for scores in self.scores.values()),
            VIOLATIONS: dict(self.violations),
            STOPPED: self.stopped,
        }


def weighed(record: Mapping[str, Any], objectives: Sequence[str]) -> float:
    """Return nats per token over all objectives of a record, every token weighing the same."""
    tokens = record["tokens"]
    total = sum(record["means"][domain] * tokens[domain] for domain in objectives)
    return float(total / sum(tokens[domain] for domain in objectives))


class Evaluator:
    """A live model, the checkpoints behind it, and the yardsticks.

    Args:
        combiner (`Combiner`): turns weights into the live model.
        yardsticks (`Mapping[str, Yardstick]`): by domain.
        limits (`Mapping[str, float]`): domains that are no objective: by how many nats per token they may be worse
            than the last checkpoint.
        last (`CheckpointWeights`): the weights of the last checkpoint alone.
    """

    def __init__(
        self,
        combiner: Combiner,
        yardsticks: Mapping[str, Yardstick],
        limits: Mapping[str, float],
        last: CheckpointWeights,
    ) -> None:
        self.yardsticks = yardsticks
        self.objectives = [domain for domain in yardsticks if domain not in limits]
        self._combiner = combiner
        self._limits = limits
        self._baseline = {domain: self.scores(last, [domain])[domain].mean for domain in limits}

    def scores(self, weights: CheckpointWeights, domains: list[str] | None = None) -> dict[str, DocumentNLL]:
        """Score a merge on all documents of `domains`, by default of all."""
        self._combiner.combine(weights)
        chosen = self.yardsticks if domains is None else domains
        return {domain: score(self._combiner.model, self.yardsticks[domain]) for domain in chosen}

    def violations(self, scores: Scores) -> dict[str, float]:
        """Return by how many nats each limited domain exceeds its limit; negative or 0 if it keeps it."""
        return {domain: scores[domain].mean - self._baseline[domain] - limit for domain, limit in self._limits.items()}

    def glance(self, weights: CheckpointWeights) -> float:
        """Return nats per token on the first part of the first objective."""
        self._combiner.combine(weights)
        return self.yardsticks[self.objectives[0]].score_part(self._combiner.model, 0).mean

    def trial(self, weights: CheckpointWeights, incumbent: DocumentNLL | None) -> Outcome:
        """Score a merge as a trial.

        Args:
            weights (`CheckpointWeights`): of the merge.
            incumbent (`DocumentNLL`, *optional*): the best so far on the only objective; a trial that is clearly
                worse is stopped early.
        """
        self._combiner.combine(weights)
        model = self._combiner.model
        scores = {domain: score(model, self.yardsticks[domain]) for domain in self._limits}
        violations = self.violations(scores)
        if incumbent is None:
            own = {domain: score(model, self.yardsticks[domain]) for domain in self.objectives}
            values = tuple(own[domain].mean for domain in self.objectives)
            return Outcome(values, violations, {**own, **scores}, stopped=False)
        (domain,) = self.objectives
        value, seen, stopped = score_against(model, self.yardsticks[domain], incumbent)
        return Outcome((value,), violations, {domain: seen, **scores}, stopped)


def overall(scores: Scores, objectives: list[str]) -> DocumentNLL:
    """Return the documents of all objectives as one set: what several objectives are weighed by."""
    return DocumentNLL.concatenate([scores[domain] for domain in objectives])
