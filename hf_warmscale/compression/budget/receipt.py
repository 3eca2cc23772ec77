"""The receipt of a search over sizes: every candidate, what was judged, and the winner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hf_warmscale.checkpoints import Receipt
from hf_warmscale.checkpoints.receipts import check_format_version, fields_in
from hf_warmscale.compression.budget.budget import UNITS

HELD_OUT = "held-out text of the search"


@dataclass
class BudgetSearchReceipt(Receipt):
    """What [`shrink_to_budget`] tried and found; see [`Receipt`]. Losses are in nats per token.

    Args:
        budget (`dict`): `kind` and `amount`.
        candidates (`list[dict]`): sizes, parameters and loss of every cut; of a finalist also its `healed_nll`.
        front (`list[dict]`): the candidates that no other beats in both parameters and loss.
        judged (`list[dict]`): the plain cuts, the finalists and the front on the other half of the documents, each
            with the paired interval of its difference from the winner.
        winner (`dict`): the chosen candidate as it was cut, with the paired interval of its loss above the source.
        source_nll (`float`): of the source on the judging half.
        select, report (`dict`): number, tokens and hash of the documents of each half.
        calibration_tokens (`int`): on which importance was measured.
        seed (`int`): of the proposals.
        healed (`dict`, *optional*): the winner after its healing, against the source and against itself before.
    """

    file_name: ClassVar[str] = "budget_search.json"
    title: ClassVar[str] = "Search of the sizes"
    tag: ClassVar[str] = "size-search"
    format_version: ClassVar[int] = 1
    attribute: ClassVar[str] = "budget_search"
    """The attribute of the live result that holds the receipt as a dict."""

    budget: dict[str, Any]
    candidates: list[dict[str, Any]]
    front: list[dict[str, Any]]
    judged: list[dict[str, Any]]
    winner: dict[str, Any]
    source_nll: float
    select: dict[str, Any]
    report: dict[str, Any]
    calibration_tokens: int
    seed: int
    healed: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the output of `to_dict`, of this or an earlier version.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, "receipt of the search")
        return cls(**fields_in(cls, content, "receipt of the search", "search again"))

    def summary(self) -> str:
        """Return one or two sentences for the card."""
        budget = f"{self.budget['amount']:,} {UNITS[self.budget['kind']]}"
        loss = self._judged()["difference"]["estimate"]
        return (
            f"Its sizes were searched within {budget}: the best of {len(self.candidates)} candidates. "
            f"On {self.report['documents']} documents that the search never saw, it is {loss:.3f} nats per token "
            f"above its source{'' if self.healed is None else ' after healing'}."
        )

    def sources(self) -> list[str]:
        """Return nothing: the receipt of the shrink names the source."""
        return []

    def comparisons(self) -> list[dict[str, Any]]:
        """Return the loss of the source and of the model on the judging half."""
        judged = self._judged()
        change = judged["difference"]
        interval = [change["low"], change["high"]]
        row = {"domain": HELD_OUT, "metric": "nll", "before": self.source_nll, "after": judged["nll"]}
        return [{**row, "interval": interval}]

    def details(self) -> dict[str, Any]:
        """Return what the card shows: the winner, and of all others how many there were."""
        shown = self.to_dict()
        return {**shown, **{name: len(shown[name]) for name in ("candidates", "front", "judged")}}

    def _judged(self) -> dict[str, Any]:
        found: dict[str, Any] = self.winner["report"] if self.healed is None else self.healed["report"]
        return found
