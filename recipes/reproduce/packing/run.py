"""Prove for every type of transformers' causal-LM mapping whether packed documents stay apart.

    python recipes/reproduce/packing/run.py             # resumes; about ten minutes of one core
    python recipes/reproduce/packing/run.py --report

Each type is one JSON file in `types/`, with the version of the code that made it; from them comes `README.md`.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hf_warmscale.architecture import Axis, find_field
from hf_warmscale.architecture.tiny import tiny_config
from hf_warmscale.checkpoints import write_text
from hf_warmscale.report import markdown_table
from hf_warmscale.studies.provenance import provenance_line
from hf_warmscale.training.data.separation import LAYOUTS, Separation, prove, tiny_sizes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from every_type import (  # noqa: E402  # shared by the studies of all types
    EVERY_TYPE,
    default_config,
    rows_of_every_type,
    with_small_sizes,
)

ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
CPU_SECONDS = 60
LAYERS = 4


def shallow_config(model_type: str) -> PreTrainedConfig:
    """Return the family's default config with few layers, where their kinds are not listed one by one."""
    config = with_small_sizes(default_config(model_type))
    if find_field(config, Axis.LAYERS) is None:
        return config
    try:
        return tiny_config(config, {**tiny_sizes(config), Axis.LAYERS: LAYERS})
    except Exception:  # the family's own validators
        return config


def row_of(model_type: str) -> dict[str, Any]:
    config = shallow_config(model_type)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    return {name: facts_of(prove(model_class, config, name)) for name in ATTENTIONS}


def facts_of(proved: Separation) -> dict[str, Any]:
    return {"changes": dict(proved.changes), "failures": dict(proved.failures), "unproved": proved.unproved}


def verdict(row: dict[str, Any], attention: str) -> str:
    if attention not in row:
        return "not tried"
    proved = Separation(row["model type"], attention, **row[attention])
    if proved.layout is not None:
        return {"rows": "stacked", "end_to_end": "end to end"}[proved.layout]
    if proved.unproved is None:
        return "refused"
    return "does not run" if "does not support an attention implementation" in proved.unproved else "unproved"


def report(rows: list[dict[str, Any]]) -> None:
    table = [{"model type": row["model type"], **{name: verdict(row, name) for name in ATTENTIONS}} for row in rows]
    totals = {name: Counter(row[name] for row in table) for name in ATTENTIONS}
    kinds = ("stacked", "end to end", "refused", "unproved", "does not run", "not tried")
    summary = [{"attention": name, **{kind: totals[name][kind] for kind in kinds}} for name in ATTENTIONS]
    details = []
    for row in rows:
        for name in ATTENTIONS:
            if verdict(row, name) in ("refused", "unproved", "does not run"):
                proved = row[name]
                changes = {layout: f"{change:.1g}" for layout, change in proved["changes"].items()}
                reasons = (proved["unproved"] or next(iter(proved["failures"].values()), "")).replace("|", "/")
                details.append({"model type": row["model type"], "attention": name, **changes, "raised": reasons})
        if "failed" in row:
            details.append({"model type": row["model type"], "attention": "all", "raised": row["failed"]})
    columns = ("model type", "attention", *LAYOUTS, "raised")
    text = (
        "# Do packed documents stay apart?\n\n"
        "    python recipes/reproduce/packing/run.py\n\n"
        f"{provenance_line(rows)}.\n\n{len(rows)} of the {len(EVERY_TYPE)} causal LMs of transformers "
        f"{transformers.__version__} with torch {torch.__version__}, on CPU. A tiny "
        "random model must give each of four documents in a packed batch the logits that it gives to the document "
        "alone, to 1e-6 of the largest logit. *Stacked*: rows of several documents, batch 2. *End to end*: all rows "
        "in one, as flash attention needs it. *Refused*: documents see one another, so a trainer refuses rows of "
        "several documents. *Unproved*: no tiny model could be made; such rows are refused too, with the reason. "
        "*Does not run*: the family has no such attention. For flash and flex attention, functions in "
        "plain torch stand in that get the same arguments.\n\n"
        + markdown_table(summary)
        + "\n## Every type\n\n"
        + markdown_table(table)
        + "\n## Refused, and what does not run\n\nThe largest change of a logit, relative to the largest logit.\n\n"
        + markdown_table([{column: row.get(column, "") for column in columns} for row in details])
    )
    write_text(HERE / "README.md", text)


def main() -> None:
    report(rows_of_every_type(__doc__ or "", HERE / "types", row_of, cpu_seconds=CPU_SECONDS))


if __name__ == "__main__":
    main()
