"""The receipt of a growth in plain values: for the folder, the card and the config."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from hf_warmscale.checkpoints import Receipt, check_format_version
from hf_warmscale.checkpoints.portable import portable
from hf_warmscale.checkpoints.receipts import fields_in

CONFIG_ENTRY = "growth"
"""The entry of a grown model's config; it survives where the file is lost."""

EARLIER = "earlier"
"""Within the entry of a model that was grown twice: the entry of the growth before, so that each can be undone."""

LARGE_GROWTH = 4.0
"""Beyond this factor of parameters growth is not known to pay (arXiv:2605.13405: break-even at 3 to 5)."""

TOKENS_PER_PARAMETER = 20.0
"""Beyond this training length a model from scratch catches up (arXiv:2605.13405)."""

BEFORE_0_2 = {"obstacle": "inexact_because"}
"""Fields of format version 1 that were renamed."""


@dataclass(frozen=True)
class Verification:
    """A comparison of source and target on the same tokens.

    Args:
        tokens (`int`): the number of positions compared.
        max_abs_logit_difference (`float`): over the vocabulary of the smaller model.
        rounding (`float`): the difference that rounding alone can cause, at these dtypes and this size of logits;
            where an exact growth moved more, as measured on the source (a router may pick another expert).
        kl_divergence (`float`): KL(source || target), mean over positions, in nats.
        activation_rms (`dict`): the RMS of the residual stream after each block, of `"source"` and `"target"`.
    """

    tokens: int
    max_abs_logit_difference: float
    rounding: float
    kl_divergence: float
    activation_rms: dict[str, list[float]]

    def in_words(self) -> str:
        """Return the measurement as one sentence."""
        return (
            f"Measured on {self.tokens} tokens: largest logit difference {self.max_abs_logit_difference:.2g}, "
            f"KL {self.kl_divergence:.2g} nats."
        )


@dataclass
class GrowthReceipt(Receipt):
    """The record of a growth. See [`Receipt`].

    Args:
        source (`str`): the name of the source: a Hub id, or `./` and the name of a folder.
        source_hash (`str`): SHA-256 over its names, shapes, dtypes and data.
        width (`str`): the width operator; `"experts"` if only the number of experts grew.
        depth (`str`): the depth operator.
        snr_db (`float` or `None`): the signal-to-noise ratio of the paired noise of `clone`, in dB.
        shrink (`float` or `None`): lambda of `szp`.
        seed (`int`): of all random numbers.
        source_sizes (`dict[str, int]`): by axis.
        sizes (`dict[str, int]`): by axis.
        layers (`list[int]`): for each block the source block that it copies.
        new_layers (`list[int]`): zero-initialised blocks.
        source_parameters (`int`): scalars of the source.
        parameters (`int`): scalars of the grown model.
        growth_factor (`float`): their ratio.
        duplicate_fraction (`float`): the share of the grown model's scalars that repeat another one exactly, up to the
            factors of the operator.
        exact (`bool`): the logits stay the same up to rounding, proved on a tiny model of the family.
        verification (`Verification` or `None`): the measured difference.
        inexact_because (`str` or `None`): why operators that are meant to be exact are not exact on this family.
        experts (`int` or `None`): the number of experts that each MLP of a dense source became.
        warnings (`list[str]`): reasons against this growth.

    Example:

    ```python
    >>> receipt = grow_checkpoint("HuggingFaceTB/SmolLM2-135M", "wide", hidden_size=1152)
    >>> receipt.width, receipt.exact
    ('clone', True)
    ```
    """

    file_name: ClassVar[str] = "growth_receipt.json"
    title: ClassVar[str] = "Growth"
    tag: ClassVar[str] = "model-growth"
    format_version: ClassVar[int] = 2
    attribute: ClassVar[str] = "growth_receipt"
    """The attribute of a grown live model that holds the receipt as a dict."""

    source: str
    source_hash: str
    width: str
    depth: str
    snr_db: float | None
    shrink: float | None
    seed: int
    source_sizes: dict[str, int]
    sizes: dict[str, int]
    layers: list[int]
    new_layers: list[int]
    source_parameters: int
    parameters: int
    growth_factor: float
    duplicate_fraction: float
    exact: bool
    verification: Verification | None = None
    inexact_because: str | None = None
    experts: int | None = None
    warnings: list[str] = field(default_factory=list)

    def config_entry(self) -> dict[str, Any]:
        """Return the part for the config: enough to make the maps again, but no measurements."""
        content = {name: value for name, value in self.to_dict().items() if name not in ("verification", "warnings")}
        return {name: value for name, value in content.items() if value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the output of `to_dict` or `config_entry`, of this or an earlier version.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, "growth receipt")
        renamed = {BEFORE_0_2.get(name, name): value for name, value in content.items()}
        values = fields_of(cls, {"snr_db": None, "shrink": None, **renamed}, "growth receipt")
        return cls(**values)

    def summary(self) -> str:
        """Return one sentence for the card."""
        return (
            f"Grown from `{self.source}`, {self.source_parameters:,} to {self.parameters:,} parameters, with the"
            f" width operator `{self.width}` and the depth operator `{self.depth}`."
        )

    def sources(self) -> list[str]:
        """Return the name of the source."""
        return [self.source]


def fields_of(kind: type[Any], content: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the fields of a receipt from its JSON; unknown keys are left out, and no local path stays.

    Args:
        kind (`type`): the dataclass of the receipt.
        content (`Mapping[str, Any]`): what was read.
        what (`str`): names the receipt for the error.

    Raises:
        ValueError: if a field is missing.
    """
    values = fields_in(kind, content, what, "resize the model again")
    if isinstance(seen := values.get("verification"), Mapping):
        values["verification"] = Verification(**seen)
    values["source"] = portable(values["source"])  # version 0.1.0 wrote a path
    return values


def read_receipt(config: PreTrainedConfig, name: str) -> GrowthReceipt:
    """Return the receipt in the config of a grown model.

    Args:
        config (`PreTrainedConfig`): of the grown model.
        name (`str`): the user's name for the model.

    Raises:
        ValueError: if the config has none.
    """
    entry = config.to_dict().get(CONFIG_ENTRY)
    if not isinstance(entry, dict):
        raise ValueError(
            f"The config of {name} has no entry {CONFIG_ENTRY!r}, so the model was not grown by this package; grow it "
            "anew."
        )
    return GrowthReceipt.from_dict(entry)


def with_entry(config: PreTrainedConfig, receipt: GrowthReceipt) -> PreTrainedConfig:
    """Return the config with the receipt's entry, and within it the entries of earlier growths."""
    content = config.to_dict()
    earlier = _published(content[CONFIG_ENTRY]) if CONFIG_ENTRY in content else None
    # Nested, the latest outside: growths are undone in the reverse order.
    entry = receipt.config_entry() if earlier is None else {**receipt.config_entry(), EARLIER: earlier}
    return type(config).from_dict({**content, CONFIG_ENTRY: entry})


def _published(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier entry in today's layout, which holds no local path."""
    earlier = entry.get(EARLIER)
    own = GrowthReceipt.from_dict(entry).config_entry()
    return own if earlier is None else {**own, EARLIER: _published(earlier)}


def growth_warnings(receipt: GrowthReceipt, target_tokens: int | None) -> list[str]:
    """Return the known reasons against a growth like this."""
    warnings = []
    if receipt.inexact_because is not None:
        warnings.append(
            f"This growth is meant to keep the logits, but cannot here: {receipt.inexact_because}; check the loss "
            "before you train, or use other operators."
        )
    seen = receipt.verification
    if receipt.exact and seen is not None and not seen.max_abs_logit_difference <= seen.rounding:
        warnings.append(
            f"This growth is meant to keep the logits, but one moved by {seen.max_abs_logit_difference:.2g}, more "
            f"than rounding explains ({seen.rounding:.2g}); do not rely on it, and report the architecture."
        )
    if receipt.growth_factor > LARGE_GROWTH:
        warnings.append(
            f"The model grows {receipt.growth_factor:.1f}-fold; beyond {LARGE_GROWTH:g}-fold, training from scratch "
            "is often as good (arXiv:2605.13405)."
        )
    # Copies are exact duplicates only where there is no noise. The stack of blocks and the vocabulary do not count:
    # repeated blocks sit at other depths, so they get other gradients.
    copying = receipt.source_sizes.keys() - {"num_hidden_layers", "vocab_size"}
    widened = any(receipt.sizes.get(axis) != receipt.source_sizes[axis] for axis in copying)
    copied = receipt.duplicate_fraction * receipt.parameters > 0.25 * (receipt.parameters - receipt.source_parameters)
    if widened and copied and receipt.width in ("clone", "net2net") and receipt.snr_db is None:
        warnings.append(
            "Copies without noise get equal gradients and never differ, so the new capacity stays unused; set snr_db, "
            "or train with dropout."
        )
    if target_tokens is not None and target_tokens > TOKENS_PER_PARAMETER * receipt.parameters:
        warnings.append(
            f"{target_tokens:,} tokens are {target_tokens / receipt.parameters:.0f} per parameter; beyond "
            f"{TOKENS_PER_PARAMETER:g}, growth is not known to beat training from scratch (arXiv:2605.13405)."
        )
    return warnings


def finish_receipt(receipt: GrowthReceipt, target_tokens: int | None) -> None:
    """Add the reasons against the growth to its receipt, and warn of them."""
    receipt.warnings = growth_warnings(receipt, target_tokens)
    for message in receipt.warnings:
        warnings.warn(message, stacklevel=4)
