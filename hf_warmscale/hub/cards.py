"""Write the model card from the receipts that the operations left in the folder."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_warmscale import __version__
from hf_warmscale.hub.portable import is_hub_id, portable
from hf_warmscale.report import markdown_table

Receipt = Mapping[str, Any]

RECEIPTS = {
    "growth_receipt.json": "Growth",
    "shrink_receipt.json": "Shrink",
    "stage.json": "Training stage",
    "merge_result.json": "Merge",
    "export.json": "Export",
}
"""The receipts a folder may hold, in the order of the work, with the title of their section."""

TAGS = {
    "Growth": "model-growth",
    "Shrink": "model-shrinking",
    "Training stage": "continual-pretraining",
    "Merge": "merge",
    "Export": "mup",
}
SOURCE_KEYS = ("source", "sources", "base_model")
LONGEST_LIST = 32
TEMPLATE = Path(__file__).with_name("card_template.md")


def make_card(folder: str | os.PathLike[str], *, repo_id: str | None = None) -> ModelCard:
    """Make the card of a model folder.

    Sources that are Hub ids become `base_model`; of local ones only the name of the folder appears. A receipt may hold
    `domains`, a list of rows with `domain`, `metric`, `before` and `after` (nats, bits per byte, ...): they become a
    table and the card's `model-index`. A merge that was not accepted (`accepted: false`) left the model of `before`.

    Args:
        folder (`str` or `PathLike`): a model folder, with or without receipts.
        repo_id (`str`, *optional*): where it will be; by default the name of the folder.

    Raises:
        ValueError: if a receipt is not JSON.

    Example:
        >>> make_card("merged", repo_id="me/merged").save("merged/README.md")
    """
    folder = Path(folder)
    repo_id = repo_id or folder.resolve().name
    name = repo_id.rpartition("/")[2]
    receipts = read_receipts(folder)
    domains = [_cells(row) for receipt in receipts.values() for row in _rows(receipt)]
    card: ModelCard = ModelCard.from_template(
        _card_data(receipts, name),
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=repo_id,
        version=__version__,
        summary=[*_summary(receipts)] or ["A causal language model."],
        domains=markdown_table(domains),
        pictures=sorted(path.name for path in folder.glob("*.png") if not path.name.startswith(".")),
        receipts=[(title, _yaml(receipt)) for title, receipt in receipts.items()],
    )
    return card


def read_receipts(folder: Path) -> dict[str, Receipt]:
    """Return the receipts of a folder by title, without local paths.

    Raises:
        ValueError: if one is not a JSON object.
    """
    receipts = {}
    for file, title in RECEIPTS.items():
        path = folder / file
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a valid JSON file ({error}); make the model again.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} does not hold a JSON object; make the model again.")
        receipts[title] = portable(content)
    return receipts


def _card_data(receipts: Mapping[str, Receipt], name: str) -> ModelCardData:
    used = [_used(receipt) for receipt in receipts.values()]
    bases = sorted({source for receipt in used for source in _sources(receipt) if is_hub_id(source)})
    results = [_eval_result(receipt, row) for receipt in receipts.values() for row in _rows(receipt)]
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        eval_results=results or None,
        library_name="transformers",
        model_name=name if results else None,
        pipeline_tag="text-generation",
        tags=["hf_warmscale", *(TAGS[title] for title in receipts)],
    )
    if bases:
        merged = "Merge" in receipts and receipts["Merge"].get("accepted", True)
        data["base_model_relation"] = "merge" if merged else "finetune"
    return data


def _used(receipt: Receipt) -> Receipt:
    """Return the part of a receipt that names the model's sources: if the merge was rejected, one input alone."""
    if receipt.get("accepted", True) or "best_single" not in receipt:
        return receipt
    return {"inputs": [receipt["inputs"][receipt["best_single"]]], "base": receipt.get("base")}


def _sources(receipt: object, key: str = "") -> Iterator[str]:
    """Yield every text under a key that names a source, at any depth."""
    if isinstance(receipt, Mapping):
        for inner, value in receipt.items():
            yield from _sources(value, inner)
    elif isinstance(receipt, list):
        for value in receipt:
            yield from _sources(value, key)
    elif isinstance(receipt, str) and key in SOURCE_KEYS:
        yield receipt


def _rows(receipt: Receipt) -> list[Receipt]:
    rows: list[Receipt] = receipt.get("domains", [])
    return rows


def _eval_result(receipt: Receipt, row: Receipt) -> EvalResult:
    """Return what the model in the folder scored."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=str(row["domain"]),  # the Hub takes results of one type for one dataset
        dataset_name=str(row["domain"]),
        metric_type=str(row["metric"]),
        metric_value=row["after" if receipt.get("accepted", True) else "before"],
    )


def _summary(receipts: Mapping[str, Receipt]) -> Iterator[str]:
    if growth := receipts.get("Growth"):
        yield (
            f"Grown from {_named(growth.get('source'))}, {growth.get('source_parameters', 0):,} to"
            f" {growth.get('parameters', 0):,} parameters, with the width operator"
            f" `{growth.get('width')}` and the depth operator `{growth.get('depth')}`."
        )
    if shrink := receipts.get("Shrink"):
        yield (
            f"Shrunk from {_named(shrink.get('source'))}, {shrink.get('source_parameters', 0):,} to"
            f" {shrink.get('parameters', 0):,} parameters."
        )
    if stage := receipts.get("Training stage"):
        yield f"Trained in the stage `{stage.get('name')}`."
    if merge := receipts.get("Merge"):
        inputs = {key: value for key, value in merge.items() if key != "base"}
        sources = ", ".join(dict.fromkeys(_named(source) for source in _sources(inputs)))
        made = "Merged" if merge.get("accepted", True) else "Chosen"
        base = f", on the base {_named(merge['base']['source'])}" if merge.get("base") else ""
        yield f"{made} from {sources or 'several checkpoints'}{base}."
        if verdict := merge.get("verdict"):
            yield f"{verdict}"
    if export := receipts.get("Export"):
        yield f"Exported from {_named(export.get('source'))} to `{export.get('to')}`."


def _named(source: object) -> str:
    return f"`{source}`"


def _cells(row: Receipt) -> dict[str, object]:
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: object) -> object:
    if isinstance(value, list):  # an interval
        return " to ".join(f"{bound:+.4g}" for bound in value)
    return value


def _yaml(receipt: Receipt) -> str:
    kept = {key: _abbreviated(value) for key, value in receipt.items() if key != "domains"}
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)
    return text


def _abbreviated(value: object) -> object:
    if isinstance(value, dict):
        return {key: _abbreviated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > LONGEST_LIST else [_abbreviated(inner) for inner in value]
    return value
