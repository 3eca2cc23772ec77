"""What every operation leaves beside the model it makes: a receipt of plain values, without local paths."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from hf_warmscale.checkpoints.portable import portable

FORMAT_VERSION = "format_version"
"""The key of the version of a receipt's layout. Receipts of 0.1.0 have none and count as version 1."""

Relation = Literal["finetune", "merge", "quantized"]
"""What the Hub calls the relation of a model to those that it was made of."""


class Receipt(Protocol):
    """The record of one operation. `hub` makes cards from receipts and knows nothing else about operations.

    A receipt is a dataclass of plain values that inherits from this class; what most receipts share is given here.

    Attributes:
        file_name (`str`): the JSON file in the model's folder.
        title (`str`): the title of its section in the card.
        tag (`str`): the tag of the card.
        format_version (`int`): the version of the layout that `to_dict` writes.

    Example:

    ```python
    >>> GrowthReceipt.file_name, GrowthReceipt.title
    ('growth_receipt.json', 'Growth')
    ```
    """

    file_name: ClassVar[str]
    title: ClassVar[str]
    tag: ClassVar[str]
    format_version: ClassVar[int]

    @classmethod
    def recognises(cls, content: Mapping[str, Any]) -> bool:
        """Tell whether a file called `file_name` holds a receipt of this kind, where several kinds share the name."""
        return True

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` of this or an earlier version wrote.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, with the format version. No value is a local path."""
        dataclass: Any = self
        return {FORMAT_VERSION: self.format_version, **portable(asdict(dataclass))}

    def summary(self) -> str:
        """Return one or two sentences for the card."""
        ...

    def sources(self) -> Sequence[str]:
        """Return the names of the models it was made of; see [`public_name`]."""
        ...

    def relation(self) -> Relation:
        """Return how the model relates to its sources."""
        return "finetune"

    def comparisons(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a table, one for each domain: `domain`, `metric`, `before`, `after`, ..."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return what the card shows of the receipt; `comparisons` are a table of their own."""
        return {key: value for key, value in self.to_dict().items() if key != "domains"}

    def scores(self) -> Mapping[tuple[str, str], float]:
        """Return what the model in the folder scored, by domain and metric."""
        return {(row["domain"], row["metric"]): row["after"] for row in self.comparisons()}


def fields_in(kind: type[Any], content: Mapping[str, Any], what: str, remedy: str) -> dict[str, Any]:
    """Return the fields of a dataclass that a receipt holds; unknown keys are left out.

    Args:
        kind (`type`): the dataclass of the receipt.
        content (`Mapping[str, Any]`): the receipt as it was read.
        what (`str`): names the receipt for the error.
        remedy (`str`): what to do; the end of the error's sentence.

    Raises:
        ValueError: if a field without a default is missing.
    """
    values = {each.name: content[each.name] for each in fields(kind) if each.name in content}
    for each in fields(kind):
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"The {what} lacks the field {each.name!r}; {remedy}.")
    return values


def public_name(source: str | os.PathLike[str]) -> str:
    """Return the name under which a receipt publishes a source: a Hub id, or `./` and the name of a folder.

    The path of a folder stays private. The `./` tells a folder `gpt2` from the model `gpt2` of the Hub; which folder
    it was is told by the hash of its weights, which receipts hold too.

    Example:
        >>> public_name("org/model@main"), public_name("/home/me/runs/base")
        ('org/model', './base')
    """
    text, path = os.fspath(source), Path(source).expanduser()
    if path.exists() or isinstance(source, os.PathLike) or path.is_absolute() or text.startswith((".", "~")):
        return f"./{path.resolve().name}"
    return text.partition("@")[0]


def check_format_version(content: Mapping[str, Any], newest: int, what: str) -> None:
    """Refuse a receipt of a newer version of this package, whose fields may mean something else.

    Args:
        content (`Mapping[str, Any]`): the receipt as it was read.
        newest (`int`): the newest version that can be read.
        what (`str`): names the receipt for the error.

    Raises:
        ValueError: if the version is newer, or is not a whole number.

    Example:

    ```python
    >>> check_format_version({"format_version": 1}, newest=2, what="The receipt")  # 3 would be refused
    ```
    """
    version = content.get(FORMAT_VERSION, 1)
    if not isinstance(version, int) or version > newest:
        raise ValueError(
            f"The {what} has the format version {version!r}, and this version of hf_warmscale reads versions up to "
            f"{newest}; update hf_warmscale."
        )
