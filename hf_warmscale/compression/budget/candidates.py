"""The candidates of a search: shapes with their loss, remembered so that a killed search continues."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial

from hf_warmscale.architecture import Axis
from hf_warmscale.compression.budget.shapes import Shapes, Sizes
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet
from hf_warmscale.merging.search.proposals import distributions
from hf_warmscale.staging import write_json


@dataclass(frozen=True, eq=False)
class ScoredShape:
    """A shape that was cut and scored.

    Args:
        sizes (`dict[Axis, int]`): every size.
        spent (`int`): what it spends of the budget.
        parameters (`int`): scalars.
        scores (`DocumentNLL`): on the documents of the selection.
        how (`str`): the name of a plain cut, or `"search"`.
        healed (`DocumentNLL`, *optional*): the scores of a finalist after its brief healing.
    """

    sizes: Sizes
    spent: int
    parameters: int
    scores: DocumentNLL
    how: str
    healed: DocumentNLL | None = None

    def trial(self, shapes: Shapes) -> FrozenTrial:
        """Return the candidate in Optuna's terms."""
        point = {
            name: min(max(value, shapes.ranges[name].low), 1.0) for name, value in shapes.point(self.sizes).items()
        }
        return create_trial(
            state=TrialState.COMPLETE,
            params=point,
            distributions=distributions(shapes.ranges),
            values=[self.scores.mean],
        )


@dataclass(frozen=True)
class Journal:
    """The candidates of a search in a JSON file, replaced as a whole after each.

    Args:
        path (`Path` or `None`): the file; `None` keeps nothing.
        settings (`Mapping[str, Any]`): what the candidates depend on.
        documents (`EvaluationSet`): on which the candidates are scored.
    """

    path: Path | None
    settings: Mapping[str, Any]
    documents: EvaluationSet

    @property
    def key(self) -> str:
        """The hash of the settings."""
        return sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def read(self) -> list[ScoredShape]:
        """Return the candidates of an earlier, interrupted search.

        Raises:
            ValueError: if the file is not a journal, or one of a search with other settings.
        """
        if self.path is None or not self.path.exists():
            return []
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            found, rows = content["key"], content["candidates"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not the journal of a search; name another file.") from error
        if found != self.key:
            raise ValueError(
                f"{self.path} belongs to a search with another source, budget, text or seed; name another file."
            )
        return [self._candidate(row) for row in rows]

    def write(self, candidates: Sequence[ScoredShape]) -> None:
        """Replace the file."""
        if self.path is not None:
            rows = [
                {**record(each), "nll_by_document": each.scores.nll.tolist(), "spent": each.spent}
                for each in candidates
            ]
            write_json(self.path, {"format_version": 1, "key": self.key, "candidates": rows})

    def _candidate(self, row: Mapping[str, Any]) -> ScoredShape:
        scores = self.documents.scores(np.array(row["nll_by_document"]))
        sizes = {Axis(name): size for name, size in row["sizes"].items()}
        return ScoredShape(sizes, row["spent"], row["parameters"], scores, row["how"])


def record(candidate: ScoredShape) -> dict[str, Any]:
    """Return plain values."""
    healed = {} if candidate.healed is None else {"healed_nll": candidate.healed.mean}
    return {
        "how": candidate.how,
        "sizes": {str(axis): size for axis, size in candidate.sizes.items()},
        "parameters": candidate.parameters,
        "spent": candidate.spent,
        "nll": candidate.scores.mean,
        **healed,
    }


def journal_path(storage: str | os.PathLike[str] | None) -> Path | None:
    """Return the path of the journal.

    Raises:
        ValueError: if it is a folder.
    """
    if storage is None:
        return None
    if Path(storage).is_dir():
        raise ValueError(f"{storage} is a folder; name a file for the journal of the search.")
    return Path(storage)


def front(candidates: Sequence[ScoredShape]) -> list[ScoredShape]:
    """Return the candidates that no other beats in both parameters and loss, the smallest first."""
    best: list[ScoredShape] = []
    for each in sorted(candidates, key=lambda each: (each.parameters, each.scores.mean)):
        if not best or each.scores.mean < best[-1].scores.mean:
            best.append(each)
    return best
