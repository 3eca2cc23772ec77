"""The last step: merge the constant phase, and keep the better of the merge and the annealed end."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from hf_warmscale.checkpoints import save_model
from hf_warmscale.evaluation import DocumentNLL
from hf_warmscale.merging import search_merge
from hf_warmscale.quickstart.data import QuickstartData
from hf_warmscale.quickstart.runs import Run
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.quickstart.text import DOMAINS, Split


@dataclass(frozen=True)
class Merge:
    """A finished search.

    Args:
        folder (`Path`): the merged model, the study and its pictures.
        checkpoints (`list[Path]`): what was merged, the earliest first.
        result (`dict`): what `merge_result.json` holds.
        trials (`list[dict]`): one for each merge that was tried, in order.
    """

    folder: Path
    checkpoints: list[Path]
    result: dict[str, Any]
    trials: list[dict[str, Any]]


def merge_constant_phase(folder: Path, run: Run, data: QuickstartData, settings: Settings) -> Merge:
    """Search the weights of the last checkpoints of the constant phase, or read what an earlier search found."""
    checkpoints = run.constant_phase()[-settings.num_checkpoints :]
    if not folder.is_dir():
        search_merge(
            checkpoints,
            select=_all_texts(data, "select"),
            confirm=_all_texts(data, "confirm"),
            space="trajectory",
            n_trials=settings.num_trials,
            seed=settings.seed,
            output=folder,
            tokenizer=data.tokenizer,
            max_length=settings.row_length,
        )
    trials = (folder / "merge_study.jsonl").read_text(encoding="utf-8").splitlines()
    result = json.loads((folder / "merge_result.json").read_text(encoding="utf-8"))
    return Merge(folder, checkpoints, result, [json.loads(line) for line in trials])


def choose_model(folder: Path, annealed: Run, merge: Merge, data: QuickstartData) -> str:
    """Save the better of the annealed model and the merge, by the select split, as a stock model; return which."""
    candidates = {"annealed": annealed.checkpoint, "merged": merge.folder}
    losses = {}
    for name, checkpoint in candidates.items():
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        scores = [held_out.nll(model) for held_out in data.held_out("select").values()]
        # The search has seen this split, which favours the merge a little; the report scores both on another one.
        losses[name] = DocumentNLL.concatenate(scores).mean
    chosen = min(losses, key=lambda name: losses[name])
    if not folder.is_dir():
        model = AutoModelForCausalLM.from_pretrained(candidates[chosen])
        save_model(model, folder, tokenizer=data.tokenizer)
    return chosen


def _all_texts(data: QuickstartData, split: Split) -> list[str]:
    return [text for domain in DOMAINS for text in data.documents[split][domain]]
