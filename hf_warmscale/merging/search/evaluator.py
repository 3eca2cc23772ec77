"""Score a merge on the domains of a search: what is minimised, what is limited, and when to stop early."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_warmscale.evaluation import DocumentNLL
from hf_warmscale.merging.combine import CheckpointWeights, Combiner
from hf_warmscale.merging.objectives.objective import Objective, score, score_against

Scores = Mapping[str, DocumentNLL]

STOPPED = "stopped_early"
VIOLATIONS = "violations"


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a trial.

    Args:
        values (`tuple[float, ...]`): the losses that are minimised, nats per token.
        violations (`Mapping[str, float]`): by how many nats each limited domain exceeds its limit.
        scores (`Scores`): by domain, as far as scored.
        stopped (`bool`): it was clearly worse than the incumbent and not scored on all documents.
    """

    values: tuple[float, ...]
    violations: Mapping[str, float]
    scores: Scores
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored with the trial, ready for JSON."""
        return {
            "means": {domain: scores.mean for domain, scores in self.scores.items()},
            "tokens": {domain: int(scores.tokens.sum()) for domain, scores in self.scores.items()},
            "documents": sum(len(scores) for scores in self.scores.values()),
            VIOLATIONS: dict(self.violations),
            STOPPED: self.stopped,
        }


def weighed(record: Mapping[str, Any], minimised: Sequence[str]) -> float:
    """Return nats per token over all minimised domains of a stored outcome, each token with the same weight."""
    # Only for trials that were scored on all documents; of a stopped one these are the means of the first parts.
    tokens = record["tokens"]
    total = sum(record["means"][domain] * tokens[domain] for domain in minimised)
    return float(total / sum(tokens[domain] for domain in minimised))


class Evaluator:
    """A live model, the models behind it, and what it is scored on.

    Args:
        combiner (`Combiner`): turns weights into the live model.
        domains (`Mapping[str, Objective]`): by name.
        limits (`Mapping[str, float]`): domains that are not minimised: by how many nats per token they may be worse
            than the last checkpoint.
        last (`CheckpointWeights`): the weights of the last checkpoint alone.

    Raises:
        NonFiniteLossError: if the last checkpoint has no finite loss on a limited domain.
    """

    def __init__(
        self,
        combiner: Combiner,
        domains: Mapping[str, Objective],
        limits: Mapping[str, float],
        last: CheckpointWeights,
    ) -> None:
        self.domains = domains
        self.minimised = [domain for domain in domains if domain not in limits]
        self._combiner = combiner
        self._limits = limits
        # Measured anew on each split: the select split's baseline says nothing about the confirm split's documents.
        self._baseline = {domain: self.scores(last, [domain])[domain].mean for domain in limits}

    def scores(self, weights: CheckpointWeights, domains: list[str] | None = None) -> dict[str, DocumentNLL]:
        """Score a merge on all documents of `domains`, by default of all domains."""
        self._combiner.combine(weights)
        chosen = self.domains if domains is None else domains
        return {domain: score(self._combiner.model, self.domains[domain]) for domain in chosen}

    def violations(self, scores: Scores) -> dict[str, float]:
        """Return by how many nats each limited domain exceeds its limit; negative or 0 if it does not."""
        return {domain: scores[domain].mean - self._baseline[domain] - limit for domain, limit in self._limits.items()}

    def quick_score(self, weights: CheckpointWeights) -> float:
        """Return nats per token on the first part of the first minimised domain."""
        self._combiner.combine(weights)
        return self.domains[self.minimised[0]].score_part(self._combiner.model, 0).mean

    def trial(self, weights: CheckpointWeights, incumbent: DocumentNLL | None) -> Outcome:
        """Score a merge as a trial.

        Args:
            weights (`CheckpointWeights`): of the merge.
            incumbent (`DocumentNLL`, *optional*): the best so far on the only minimised domain; a trial that is
                clearly worse is stopped early.

        Raises:
            NonFiniteLossError: if the merge has no finite loss.
        """
        self._combiner.combine(weights)
        model = self._combiner.model
        # In full even if the trial will be stopped early: the violations are constraints from which the sampler
        # learns.
        scores = {domain: score(model, self.domains[domain]) for domain in self._limits}
        violations = self.violations(scores)
        if incumbent is None:
            own = {domain: score(model, self.domains[domain]) for domain in self.minimised}
            values = tuple(own[domain].mean for domain in self.minimised)
            return Outcome(values, violations, {**own, **scores}, stopped=False)
        (domain,) = self.minimised
        value, seen, stopped = score_against(model, self.domains[domain], incumbent)
        return Outcome((value,), violations, {domain: seen, **scores}, stopped)


def overall(scores: Scores, minimised: list[str]) -> DocumentNLL:
    """Return the documents of all minimised domains as one set, in which each token has the same weight."""
    return DocumentNLL.concatenate([scores[domain] for domain in minimised])
