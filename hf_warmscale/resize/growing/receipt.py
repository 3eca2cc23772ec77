"""What a growth did, in plain values: for the folder, the card and the config."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig

from hf_warmscale.architecture import Axis
from hf_warmscale.resize.growing.duplicates import duplicate_fraction
from hf_warmscale.resize.growing.experts import Upcycling, experts_obstacle, is_expert
from hf_warmscale.resize.growing.proof import obstacle
from hf_warmscale.resize.planning.exactness import means_exact
from hf_warmscale.resize.planning.request import Growth

RECEIPT_FILE = "growth_receipt.json"
RECEIPT_ATTRIBUTE = "growth_receipt"
"""What a grown model carries until it is saved."""

CONFIG_ENTRY = "growth"
"""The entry of a grown model's config, which survives where the file does not."""

EARLIER = "earlier"
"""In the entry of a model that was grown before: the entry it had then, so that each growth can be undone in turn."""

LARGE_GROWTH = 4.0
"""Beyond this factor of parameters growth is not known to pay (arXiv:2605.13405: break-even at 3 to 5)."""

TOKENS_PER_PARAMETER = 20.0
"""Beyond this training length a model from scratch catches up (arXiv:2605.13405)."""


@dataclass(frozen=True)
class Verification:
    """The source and the grown model on the same tokens.

    Args:
        tokens (`int`): the number of positions compared.
        max_abs_logit_difference (`float`): over the source's vocabulary.
        rounding (`float`): the difference that the arithmetic alone may make, at this dtype and size of logits.
        kl_divergence (`float`): KL(source || grown), mean over positions, in nats.
        activation_rms (`dict`): the RMS of the residual stream after each block, `"source"` and `"target"`.
    """

    tokens: int
    max_abs_logit_difference: float
    rounding: float
    kl_divergence: float
    activation_rms: dict[str, list[float]]


@dataclass
class GrowthReceipt:
    """What a growth did.

    Args:
        source (`str`): what was grown.
        source_hash (`str`): SHA-256 over its names, shapes, dtypes and data.
        width (`str`): the width operator; `"experts"` if nothing grew but the number of experts.
        depth (`str`): the depth operator.
        snr_db (`float` or `None`): of the paired noise of `clone`.
        shrink (`float` or `None`): lambda of `szp`.
        seed (`int`): of all noise and draws.
        source_sizes (`dict[str, int]`): by axis.
        sizes (`dict[str, int]`): by axis.
        layers (`list[int]`): for each block the source block it copies.
        new_layers (`list[int]`): inserted blocks that write nothing at first.
        source_parameters (`int`): scalars of the source.
        parameters (`int`): scalars of the grown model.
        growth_factor (`float`): their ratio.
        duplicate_fraction (`float`): the share of the grown model's scalars that repeat another one exactly, up to the
            factors of the operator.
        exact (`bool`): the operators leave the logits as they are, up to rounding: proved on a tiny such model.
        verification (`Verification` or `None`): what was measured.
        obstacle (`str` or `None`): why operators that are meant to be exact are not, on this family.
        experts (`int` or `None`): the experts that each MLP of a dense source became.
        warnings (`list[str]`): what speaks against this growth.
    """

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
    obstacle: str | None = None
    experts: int | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def config_entry(self) -> dict[str, Any]:
        """Return what the config keeps: enough to make the maps again, and no measurement."""
        kept = {name: value for name, value in self.to_dict().items() if name not in ("verification", "warnings")}
        return {name: value for name, value in kept.items() if value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "GrowthReceipt":
        """Read what `to_dict` or `config_entry` wrote."""
        values = {"snr_db": None, "shrink": None, **content}
        values.pop(EARLIER, None)
        if values.get("verification") is not None:
            values["verification"] = Verification(**values["verification"])
        return cls(**values)


def receipt_of(growth: Growth | Upcycling, source: str, source_hash: str) -> GrowthReceipt:
    """Return the receipt of a growth, with experts or without, before anything is measured."""
    if isinstance(growth, Growth):
        return make_receipt(growth, source, source_hash)
    dense, target, experts = growth.dense, growth.target, growth.target.sizes[Axis.EXPERTS]
    copied = [parameter for name, parameter in dense.parameters.items() if is_expert(name)]
    repeated = sum(math.prod(parameter.shape(dense.sizes)) for parameter in copied) * (experts - 1)
    before = _unchanged(growth, source, source_hash)
    if growth.growth is not None:
        before = make_receipt(growth.growth, source, source_hash)
    reason = before.obstacle or experts_obstacle(growth)
    return replace(
        before,
        sizes={str(axis): size for axis, size in target.sizes.items()},
        parameters=target.num_parameters(),
        growth_factor=target.num_parameters() / before.source_parameters,
        duplicate_fraction=(before.duplicate_fraction * dense.num_parameters() + repeated) / target.num_parameters(),
        exact=before.exact and reason is None,
        obstacle=reason,
        experts=experts,
    )


def _unchanged(growth: Upcycling, source: str, source_hash: str) -> GrowthReceipt:
    sizes = {str(axis): size for axis, size in growth.dense.sizes.items()}
    return GrowthReceipt(
        source=source,
        source_hash=source_hash,
        width="experts",
        depth="stack",
        snr_db=None,
        shrink=None,
        seed=growth.seed,
        source_sizes=sizes,
        sizes=sizes,
        layers=list(range(growth.dense.sizes[Axis.LAYERS])),
        new_layers=[],
        source_parameters=growth.dense.num_parameters(),
        parameters=growth.dense.num_parameters(),
        growth_factor=1.0,
        duplicate_fraction=0.0,
        exact=True,
    )


def growth_warnings(receipt: GrowthReceipt, target_tokens: int | None) -> list[str]:
    """Return what is known to speak against a growth like this."""
    warnings = []
    if receipt.obstacle is not None:
        warnings.append(
            f"This growth should leave the logits as they are, but cannot here: {receipt.obstacle}; look at the loss "
            "before you train, or take other operators."
        )
    seen = receipt.verification
    if receipt.exact and seen is not None and not seen.max_abs_logit_difference <= seen.rounding:
        warnings.append(
            f"This growth should leave the logits as they are, but one moved by {seen.max_abs_logit_difference:.2g}, "
            f"more than rounding explains ({seen.rounding:.2g}); do not rely on it, and report the architecture."
        )
    if receipt.growth_factor > LARGE_GROWTH:
        warnings.append(
            f"The model grows {receipt.growth_factor:.1f}-fold; beyond {LARGE_GROWTH:g}-fold training from scratch is "
            "often as good (arXiv:2605.13405)."
        )
    # A duplicate is a copy beyond the first, so without noise the new capacity is what is duplicated.
    copying = receipt.source_sizes.keys() - {"num_hidden_layers", "vocab_size"}
    widened = any(receipt.sizes.get(axis) != receipt.source_sizes[axis] for axis in copying)
    copied = receipt.duplicate_fraction * receipt.parameters > 0.25 * (receipt.parameters - receipt.source_parameters)
    if widened and copied and receipt.width in ("clone", "net2net") and receipt.snr_db is None:
        warnings.append(
            "Copies without noise get equal gradients and stay copies, so the new capacity is never used; set snr_db, "
            "or train with dropout."
        )
    if target_tokens is not None and target_tokens > TOKENS_PER_PARAMETER * receipt.parameters:
        warnings.append(
            f"{target_tokens:,} tokens are {target_tokens / receipt.parameters:.0f} for each parameter; beyond "
            f"{TOKENS_PER_PARAMETER:g} growth is not known to beat training from scratch (arXiv:2605.13405)."
        )
    return warnings


def with_entry(config: PreTrainedConfig, receipt: GrowthReceipt) -> PreTrainedConfig:
    """Return the config with the receipt's entry; the one of an earlier growth lies within it."""
    content = config.to_dict()
    earlier = {EARLIER: content[CONFIG_ENTRY]} if CONFIG_ENTRY in content else {}
    return type(config).from_dict({**content, CONFIG_ENTRY: receipt.config_entry() | earlier})


def make_receipt(growth: Growth, source: str, source_hash: str) -> GrowthReceipt:
    """Return the receipt of a growth, before anything is measured."""
    request, plan = growth.request, growth.plan
    reason = obstacle(growth)
    parameters = plan.source.num_parameters(), plan.target.num_parameters()
    return GrowthReceipt(
        source=source,
        source_hash=source_hash,
        width=request.width,
        depth=request.depth,
        snr_db=request.snr_db if request.width == "clone" else None,
        shrink=request.shrink if request.width == "szp" else None,
        seed=request.seed,
        source_sizes={str(axis): size for axis, size in plan.source.sizes.items()},
        sizes={str(axis): size for axis, size in plan.target.sizes.items()},
        layers=list(plan.layers.source),
        new_layers=sorted(plan.layers.silent),
        source_parameters=parameters[0],
        parameters=parameters[1],
        growth_factor=parameters[1] / parameters[0],
        duplicate_fraction=duplicate_fraction(growth.transfers),
        exact=means_exact(plan) and reason is None,
        obstacle=reason,
    )


def finish_receipt(receipt: GrowthReceipt, target_tokens: int | None) -> None:
    """Add what speaks against the growth, and say it."""
    receipt.warnings = growth_warnings(receipt, target_tokens)
    for message in receipt.warnings:
        warnings.warn(message, stacklevel=4)
