"""Write the model card from the receipts that the operations left in the folder."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_warmscale import __version__
from hf_warmscale.checkpoints import Receipt
from hf_warmscale.checkpoints.portable import is_hub_id, portable, portable_text
from hf_warmscale.compression.budget.receipt import BudgetSearchReceipt
from hf_warmscale.decoding.receipt import CombinationReceipt
from hf_warmscale.merging import MergeReceipt, MergeResult
from hf_warmscale.mup import ExportReceipt
from hf_warmscale.report import markdown_table
from hf_warmscale.resize import GrowthReceipt, ShrinkReceipt
from hf_warmscale.staging import read_json
from hf_warmscale.training.stage import StageRecord

KINDS: tuple[type[Receipt], ...] = (
    GrowthReceipt,
    ShrinkReceipt,
    BudgetSearchReceipt,
    StageRecord,
    MergeResult,
    MergeReceipt,
    ExportReceipt,
    CombinationReceipt,
)
"""The receipts that a folder may hold, in the order of the work. All that a card says comes from their methods."""

LONGEST_LIST = 32
TEMPLATE = Path(__file__).with_name("card_template.md")


def make_card(folder: str | os.PathLike[str], *, repo_id: str | None = None) -> ModelCard:
    """Make the card of a model folder from its receipts; see [`Receipt`].

    Sources that are Hub ids become `base_model`; of local ones only the name of the folder appears. What a receipt
    compares by domain becomes a table, and what it measured of the model the card's `model-index`.

    Args:
        folder (`str` or `PathLike`): a model folder, with or without receipts.
        repo_id (`str`, *optional*): where it will be; by default the name of the folder.

    Raises:
        ValueError: if a receipt is damaged, or a newer version of this package wrote it.

    Example:
        >>> make_card("merged", repo_id="me/merged").save("merged/README.md")
    """
    folder = Path(folder)
    repo_id = repo_id or folder.resolve().name
    name = repo_id.rpartition("/")[2]
    receipts = read_receipts(folder)
    card: ModelCard = ModelCard.from_template(
        _card_data(receipts, name),
        template_path=str(TEMPLATE),
        model_name=name,
        repo_id=repo_id,
        version=__version__,
        summary=[portable_text(receipt.summary()) for receipt in receipts] or ["A causal language model."],
        domains=markdown_table(
            [
                {key: _cell(value) for key, value in portable(row).items()}
                for receipt in receipts
                for row in receipt.comparisons()
            ]
        ),
        pictures=sorted(path.name for path in folder.glob("*.png") if not path.name.startswith(".")),
        receipts=[(receipt.title, _yaml(receipt)) for receipt in receipts],
    )
    return card


def read_receipts(folder: Path) -> list[Receipt]:
    """Return the receipts of a folder, in the order of the work.

    Raises:
        ValueError: if one is damaged, or a newer version of this package wrote it.
    """
    receipts: dict[str, Receipt] = {}
    for kind in KINDS:
        path = folder / kind.file_name
        if kind.file_name not in receipts and path.is_file():
            content = read_json(path, "make the model again")
            if kind.recognises(content):
                receipts[kind.file_name] = kind.from_dict(content)
    return list(receipts.values())


def _card_data(receipts: Sequence[Receipt], name: str) -> ModelCardData:
    bases = sorted({source for receipt in receipts for source in receipt.sources() if is_hub_id(source)})
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=portable(domain),  # the Hub takes results of one type for one dataset
            dataset_name=portable(domain),
            metric_type=metric,
            metric_value=value,
        )
        for receipt in receipts
        for (domain, metric), value in receipt.scores().items()
    ]
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        eval_results=results or None,
        library_name="transformers",
        model_name=name if results else None,
        pipeline_tag="text-generation",
        tags=["hf_warmscale", *(receipt.tag for receipt in receipts)],
    )
    if bases:
        # The last receipt that is more than a plain fine-tuning decides: a merge that is trained on stays a merge.
        relations = [receipt.relation() for receipt in receipts]
        data["base_model_relation"] = next((each for each in relations[::-1] if each != "finetune"), "finetune")
    return data


def _cell(value: object) -> object:
    if isinstance(value, list):  # an interval
        return " to ".join(f"{bound:+.4g}" for bound in value)
    return value


def _yaml(receipt: Receipt) -> str:
    shown = _abbreviated(receipt.details())
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)
    return text


def _abbreviated(value: object) -> object:
    if isinstance(value, dict):
        return {key: _abbreviated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > LONGEST_LIST else [_abbreviated(inner) for inner in value]
    return value
