"""The receipt of a combination of models, and its card: which models, and how much each of them counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hf_warmscale.checkpoints import Receipt, check_format_version, public_name
from hf_warmscale.checkpoints.portable import is_hub_id
from hf_warmscale.checkpoints.receipts import fields_in
from hf_warmscale.decoding.configuration import EmulatedFineTuningConfig

ADAPTER_OFF = "the first tuned model, with its adapter off"


@dataclass(frozen=True)
class CombinationReceipt(Receipt):
    """The record of a saved [`EmulatedFineTuningForCausalLM`]. See [`Receipt`].

    The `config.json` beside it names folders by their paths, because the members are loaded from there; the receipt
    names them without.

    Args:
        members (`list[dict]`): `role`, `source` (a Hub id, or `./` and the name of a folder; `None` for the first
            tuned model with its adapter off), `revision` and `adapter` (a subfolder) of each.
        weights (`list[float]` or `None`): of the tuned models; `None` for equal shares of 1.
        beta (`float`): of the difference between the large base and the small one.
        upscale_top_p (`float` or `None`): the nucleus to which that difference is restricted.
    """

    file_name: ClassVar[str] = "combination_receipt.json"
    title: ClassVar[str] = "Emulated fine-tuning"
    tag: ClassVar[str] = "emulated-fine-tuning"
    format_version: ClassVar[int] = 1

    members: list[dict[str, str | None]]
    weights: list[float] | None
    beta: float
    upscale_top_p: float | None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the output of `to_dict`.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, cls.file_name)
        return cls(**fields_in(cls, content, cls.file_name, "save the combination again"))

    def summary(self) -> str:
        """Return one sentence for the card."""
        names = ", ".join(f"`{member['source']}` ({member['role']})" for member in self.members if member["source"])
        return f"A combination of {names} at every step; it holds no weights of its own."

    def sources(self) -> list[str]:
        """Return the names of the members."""
        return list(dict.fromkeys(member["source"] for member in self.members if member["source"]))


def combination_receipt(config: EmulatedFineTuningConfig) -> CombinationReceipt:
    """Return the receipt of a config that names its members."""
    assert config.members is not None
    roles = ["base", *("tuned" for _ in config.members["tuned"]), "reference"]
    members = [_member(role, entry) for role, entry in zip(roles, entries_of(config.members), strict=True)]
    return CombinationReceipt(members, config.weights, config.beta, config.upscale_top_p)


def entries_of(members: Mapping[str, Any]) -> list[dict[str, str] | None]:
    """Return the entries of a config's members in the order of the roles: base, tuned models, reference."""
    return [members["base"], *members["tuned"], members["reference"]]


def _member(role: str, entry: Mapping[str, str] | None) -> dict[str, str | None]:
    if entry is None:
        return {"role": role, "source": None, "revision": None, "adapter": None}
    source = public_name(entry["name_or_path"])
    return {"role": role, "source": source, "revision": entry.get("revision"), "adapter": entry.get("adapter")}


def card(receipt: CombinationReceipt, name: str = "this folder") -> str:
    """Return the README of a saved combination, which is loaded by a name: the members, the settings, how to load."""
    hub = [name for name in receipt.sources() if is_hub_id(name)]
    front = "\n".join(
        ["library_name: transformers", *(["base_model:", *(f"- {name}" for name in hub)] if hub else [])]
    )
    return _CARD.format(
        front=front,
        name=name,
        rows="\n".join(_rows(receipt)),
        weights="equal shares of 1" if receipt.weights is None else receipt.weights,
        beta=receipt.beta,
        upscale_top_p=receipt.upscale_top_p,
    )


_CARD = """---
{front}
---

# Emulated fine-tuning

These models are used together at every step. This folder holds no weights: they are loaded from where they are.

| member | where | revision |
|---|---|---|
{rows}

The log-probabilities are `s + sum_i w_i (t_i - s) + beta (l - s)`, normalised, with l of the base, s of the reference
and t_i of the tuned models ([arXiv:2310.12962](https://arxiv.org/abs/2310.12962)).
Weights w: {weights}. beta: {beta}. upscale_top_p: {upscale_top_p}.

```python
from hf_warmscale import EmulatedFineTuningForCausalLM

model = EmulatedFineTuningForCausalLM.from_pretrained("{name}")
```
"""


def _rows(receipt: CombinationReceipt) -> Iterable[str]:
    for member in receipt.members:
        where = f"`{member['source']}`" if member["source"] else ADAPTER_OFF
        adapter = f", with the adapter in `{member['adapter']}`" if member["adapter"] else ""
        yield f"| {member['role']} | {where}{adapter} | {member['revision'] or ''} |"
