"""What a search returns, and what it leaves in the result folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from hf_warmscale.evaluation import PairedDifference
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.inputs import MergeInput
from hf_warmscale.merging.search.mergeability import Mergeability

STUDY = "merge_study.jsonl"
JOURNAL = "merge_journal.log"


@dataclass(frozen=True, eq=False)
class MergeResult:
    """The answer of a search.

    Args:
        weights (`CheckpointWeights`): of the model that is recommended, and written: the winner's if it was accepted,
            those of the best single checkpoint otherwise. One number a checkpoint, or that for every parameter.
        accepted (`bool`): the winner is better than the best single checkpoint on the confirm split, beyond chance.
        interval (`PairedDifference`): winner minus best single checkpoint on the confirm split, nats per token.
        interval_uniform (`PairedDifference`): winner minus uniform average on the confirm split, nats per token.
        verdict (`str`): the answer in words.
        winner (`Mapping[str, float]`): the winning point of the space.
        best_single (`int`): index of the best single checkpoint, chosen on the select split.
        domains (`list[dict]`): a row for each domain of the confirm split, before and after.
        front (`list[dict]`): with several objectives, the trials that no other beats in all of them.
        mergeability (`Mergeability` or `None`): what lies between the first and the last checkpoint.
        inputs (`tuple[MergeInput, ...]`): the checkpoints or adapters.
        base (`MergeInput` or `None`): the base of the adapters.
        num_trials (`int`): finished trials.
        study (`optuna.Study` or `None`): on the main process; the others have none.
        settings (`Mapping[str, Any]`): of the search, with the hashes of what was searched and on what.
    """

    weights: CheckpointWeights
    accepted: bool
    interval: PairedDifference
    interval_uniform: PairedDifference
    verdict: str
    winner: Mapping[str, float]
    best_single: int
    domains: list[dict[str, Any]]
    front: list[dict[str, Any]]
    mergeability: Mergeability | None
    inputs: tuple[MergeInput, ...]
    base: MergeInput | None
    num_trials: int
    study: optuna.Study | None
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the study, ready for JSON: the content of `merge_result.json`."""
        return {
            "method": "linear",
            "verdict": self.verdict,
            "accepted": self.accepted,
            "weights": self.weights,
            "interval": self.interval.to_dict(),
            "interval_uniform": self.interval_uniform.to_dict(),
            "domains": self.domains,
            "winner": dict(self.winner),
            "best_single": self.best_single,
            "front": self.front,
            "inputs": [each.to_dict() for each in self.inputs],
            "base": self.base.to_dict() if self.base else None,
            "num_trials": self.num_trials,
            "mergeability": self.mergeability.to_dict() if self.mergeability else None,
            "settings": dict(self.settings),
        }
