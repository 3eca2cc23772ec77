"""The receipt of a shrink in plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from hf_warmscale.checkpoints import Receipt, check_format_version
from hf_warmscale.resize.growing.receipt import Verification, fields_of

How = Literal["receipt", "importance"]


@dataclass
class ShrinkReceipt(Receipt):
    """The record of a shrink. See [`Receipt`].

    Args:
        source (`str`): the name of the source: a Hub id, or `./` and the name of a folder.
        source_hash (`str`): SHA-256 over its names, shapes, dtypes and data.
        how (`str`): `"receipt"` if a growth was undone, `"importance"` if coordinates were selected.
        source_sizes (`dict[str, int]`): by axis.
        sizes (`dict[str, int]`): by axis.
        layers (`list[int]`): the selected blocks.
        block_influence (`list[float]`): of every block of the source; empty if a growth was undone.
        source_parameters (`int`): scalars of the source.
        parameters (`int`): scalars of the smaller model.
        calibration_tokens (`int`): the number of tokens on which importance was measured.
        verification (`Verification` or `None`): the measured difference.

    Example:

    ```python
    >>> receipt = shrink_checkpoint("grown", "small-again")
    >>> receipt.how, receipt.parameters < receipt.source_parameters
    ('receipt', True)
    ```
    """

    file_name: ClassVar[str] = "shrink_receipt.json"
    title: ClassVar[str] = "Shrink"
    tag: ClassVar[str] = "model-shrinking"
    format_version: ClassVar[int] = 1
    attribute: ClassVar[str] = "shrink_receipt"
    """The attribute of a smaller live model that holds the receipt as a dict."""

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

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the output of `to_dict`, of this or an earlier version.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, "shrink receipt")
        return cls(**fields_of(cls, content, "shrink receipt"))

    def summary(self) -> str:
        """Return one sentence for the card."""
        how = "by undoing a growth" if self.how == "receipt" else "to its most important coordinates"
        return f"Shrunk from `{self.source}`, {self.source_parameters:,} to {self.parameters:,} parameters, {how}."

    def sources(self) -> list[str]:
        """Return the name of the source."""
        return [self.source]
