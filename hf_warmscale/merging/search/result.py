"""The result of a search, as it is returned and as it is stored in the result folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import optuna

from hf_warmscale.checkpoints import FORMAT_VERSION, Receipt, check_format_version
from hf_warmscale.checkpoints.portable import portable
from hf_warmscale.checkpoints.receipts import Relation
from hf_warmscale.evaluation import PairedDifference
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.inputs import MergeInput, named_sources
from hf_warmscale.merging.merge import RESULT, RESULT_VERSION, TAG, TITLE
from hf_warmscale.merging.search.mergeability import Mergeability

STUDY = "merge_study.jsonl"
JOURNAL = "merge_journal.log"


@dataclass(frozen=True, eq=False)
class MergeResult(Receipt):
    """The answer of a search.

    Args:
        weights (`CheckpointWeights`): of the model that is recommended and written: the winner's if it was accepted,
            those of the best single checkpoint otherwise. One number per checkpoint, or that for every parameter.
        accepted (`bool`): whether the winner is better than the best single checkpoint on the confirm split, beyond
            chance.
        interval (`PairedDifference`): winner minus best single checkpoint on the confirm split, nats per token.
        interval_uniform (`PairedDifference`): winner minus uniform average on the confirm split, nats per token.
        verdict (`str`): the answer in words.
        winner (`Mapping[str, float]`): the winning point of the space.
        best_single (`int`): index of the best single checkpoint, chosen on the select split.
        domains (`list[dict]`): a row for each domain of the confirm split, before and after.
        front (`list[dict]`): with several objectives, the trials that no other trial beats in all of them.
        mergeability (`Mergeability` or `None`): the loss from the first to the last checkpoint; `None` for adapters.
        inputs (`tuple[MergeInput, ...]`): the checkpoints or adapters.
        base (`MergeInput` or `None`): the base of the adapters.
        num_trials (`int`): the number of finished trials.
        study (`optuna.Study` or `None`): on the main process only; `None` in a result that was read from its file.
        settings (`Mapping[str, Any]`): of the search, with the hashes of checkpoints and documents.

    Example:

    ```python
    >>> steps = [f"run/checkpoint-{step}" for step in (800, 900, 1000)]
    >>> search_merge(steps, select=documents[:200], confirm=documents[200:], space="simplex", output="best")
    >>> result = MergeResult.from_dict(json.loads(Path("best/merge_result.json").read_text()))
    >>> print(result.verdict, result.interval.estimate)
    ```
    """

    file_name: ClassVar[str] = RESULT
    title: ClassVar[str] = TITLE
    tag: ClassVar[str] = TAG
    format_version: ClassVar[int] = RESULT_VERSION

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
        content = {
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
        return {FORMAT_VERSION: self.format_version, **portable(content)}

    @classmethod
    def recognises(cls, content: Mapping[str, Any]) -> bool:
        """Tell the result of a search from the receipt of a plain merge: only a search has a verdict."""
        return "verdict" in content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` of this version or of 0.1.0 wrote; the study stays in its storage.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, RESULT)
        try:
            weights, look, base = content["weights"], content["mergeability"], content["base"]
            names = ("accepted", "verdict", "winner", "best_single", "domains", "front", "num_trials", "settings")
            return cls(
                weights={name: tuple(each) for name, each in weights.items()}
                if isinstance(weights, Mapping)
                else tuple(weights),
                interval=PairedDifference.from_dict(content["interval"]),
                interval_uniform=PairedDifference.from_dict(content["interval_uniform"]),
                mergeability=Mergeability.from_dict(look) if look else None,
                inputs=tuple(map(MergeInput.from_dict, content["inputs"])),
                base=MergeInput.from_dict(base) if base else None,
                study=None,
                **{name: content[name] for name in names},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"The {RESULT} is damaged ({error}); search again.") from error

    def summary(self) -> str:
        """Return two sentences for the card: what it was made of, and the verdict."""
        made = "Merged" if self.accepted else "Chosen"
        return f"{made} from {named_sources(self.inputs, self.base)}. {self.verdict}"

    def sources(self) -> tuple[str, ...]:
        """Return the names of the models that are in the result: all inputs, or the best one alone, and the base."""
        used = self.inputs if self.accepted else self.inputs[self.best_single : self.best_single + 1]
        return tuple(each.source for each in (*used, *([self.base] if self.base else [])))

    def relation(self) -> Relation:
        """Return what the folder holds: a merge, or the best checkpoint, which is a model tuned further."""
        return "merge" if self.accepted else "finetune"

    def comparisons(self) -> list[dict[str, Any]]:
        """Return the rows of the confirm split."""
        return self.domains

    def scores(self) -> dict[tuple[str, str], float]:
        """Return the scores of the model in the folder; that of a rejected merge is the model of `before`."""
        which = "after" if self.accepted else "before"
        return {(row["domain"], row["metric"]): row[which] for row in self.domains}
