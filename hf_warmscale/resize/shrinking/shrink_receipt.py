"""What a shrink did, in plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_warmscale.resize.growing.receipt import Verification

SHRINK_FILE = "shrink_receipt.json"
SHRINK_ATTRIBUTE = "shrink_receipt"
"""What a shrunk model carries until it is saved."""

How = Literal["receipt", "importance"]


@dataclass
class ShrinkReceipt:
    """What a shrink did.

    Args:
        source (`str`): what was shrunk.
        source_hash (`str`): SHA-256 over its names, shapes, dtypes and data.
        how (`str`): `"receipt"` undid a growth, `"importance"` kept what matters on calibration text.
        source_sizes (`dict[str, int]`): by axis.
        sizes (`dict[str, int]`): by axis.
        layers (`list[int]`): the blocks that were kept.
        block_influence (`list[float]`): of every block of the source; empty if a growth was undone.
        source_parameters (`int`): scalars of the source.
        parameters (`int`): scalars of the smaller model.
        calibration_tokens (`int`): on how many tokens importance was measured.
        verification (`Verification` or `None`): both models on a short probe.
    """

    source: str
    source_hash: str
    how: How
    source_sizes: dict[str, int]
    sizes: dict[str, int]
    layers: list[int]
    block_influence: list[float]
    source_parameters: int
    parameters: int
    calibration_tokens: int
    verification: Verification | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ShrinkReceipt":
        """Read what `to_dict` wrote."""
        seen = content["verification"]
        return cls(**{**content, "verification": None if seen is None else Verification(**seen)})
