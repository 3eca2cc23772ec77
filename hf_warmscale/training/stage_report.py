"""What a stage did, at its end: `report.md`, `report.json` and `report.png` in its run folder."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_warmscale.checkpoints import write_text
from hf_warmscale.checkpoints.run_folder import logged, logged_names
from hf_warmscale.report import figure, markdown_table
from hf_warmscale.staging import as_json
from hf_warmscale.training.stage import StageRecord

History = Sequence[Mapping[str, Any]]

AGGREGATES = ("eval_loss", "eval_weighted_loss")


def write_stage_report(folder: str | os.PathLike[str], record: StageRecord, history: History) -> None:
    """Write the report of a stage.

    Args:
        folder (`str` or `PathLike`): of the run.
        record (`StageRecord`): at the end of the stage.
        history (`Sequence[Mapping]`): what the trainer logged.
    """
    folder, report = Path(folder), stage_report(record, history)
    write_text(folder / "report.json", as_json(report))
    write_text(folder / "report.md", as_markdown(report))
    draw_stage(folder / "report.png", record.name, history)


def stage_report(record: StageRecord, history: History) -> dict[str, Any]:
    """Return the report as plain data; losses are in nats per token, and `None` where they are not finite."""
    progress = record.progress
    # Later entries win: the last value that was logged under each name.
    last = {key: value for entry in history for key, value in entry.items()}
    watched = {
        key: value
        for key, value in last.items()
        if key in ("loss", "grad_norm") or key.startswith("loss/") or key.endswith("_loss")
    }
    return {
        "diverged": sorted(key for key, value in watched.items() if not math.isfinite(value)),
        "stage": record.name,
        "schedule": record.schedule,
        "steps": progress.step,
        "changes": _changes(record),
        "tokens": progress.num_tokens(),
        "tokens_of_all_stages": record.total_tokens(),
        "tokens_per_second": progress.num_tokens() / progress.seconds if progress.seconds else None,
        "ancestors": [entry["name"] for entry in record.lineage],
        "domains": [
            {
                "domain": name,
                "start": start,
                "end": last[f"eval_{name}_loss"],
                "change": None if start is None else last[f"eval_{name}_loss"] - start,
                "bits_per_byte": last.get(f"eval_{name}_bits_per_byte"),
            }
            for name, start in record.start_losses.items()
            if f"eval_{name}_loss" in last
        ],
        "sources": [
            {
                "source": name,
                "rows": rows,
                "tokens": progress.tokens.get(name, 0),
                "loss_tokens": progress.loss_tokens.get(name, 0),
                "loss": last.get(f"loss/{name}", last.get("loss") if len(progress.rows) == 1 else None),
            }
            for name, rows in progress.rows.items()
        ],
        "learning_rates": {key.removeprefix("lr/"): value for key, value in last.items() if key.startswith("lr/")},
    }


def _changes(record: StageRecord) -> list[str]:
    """Return the change points: of the total batch, and of the mixture while it was in use."""
    batches = [
        f"From step {change['step']} on (sample {change['sample']}) a step has {change['samples_per_step']} rows."
        for change in record.batch_changes
        if change["step"] < record.num_steps
    ]
    mixtures = [
        f"From sample {point} on the weights are "
        + ", ".join(f"{name} {share:g}" for name, share in weights[point].items())
        + "."
        for point, weights in record.mixture.get("changes", {}).items()
    ]
    return batches + mixtures


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report for people."""
    facts = ("steps", "tokens", "tokens_of_all_stages", "tokens_per_second")
    parts = [
        f"# Stage {report['stage']}",
        f"{report['schedule']['name']}, peak {report['schedule']['learning_rate']:g}"
        + (f", after {', '.join(report['ancestors'])}" if report["ancestors"] else "")
        + ".",
        markdown_table([{name.replace("_", " "): report[name] for name in facts}]),
    ]
    parts += [" ".join(report["changes"])] if report["changes"] else []
    if report["diverged"]:
        parts += [
            f"Not finite at the end: {', '.join(report['diverged'])}. The run diverged, or a data set has no labels."
        ]
    if report["domains"]:
        note = "Validation loss in nats per token. A positive change is forgetting."
        parts += ["## Domains", note, markdown_table(report["domains"])]
    parts += ["## Sources", "The loss is the last one that was logged.", markdown_table(report["sources"])]
    parts += ["![Losses and learning rate](report.png)"]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def draw_stage(path: Path, name: str, history: History) -> None:
    """Draw what was logged of losses by domain and by source, divergences from teachers, and learning rates."""
    panels = {
        "validation loss": _curves(history, "eval_", "_loss"),
        "training loss": _curves(history, "loss/") or {"": logged(history, "loss")},
        "divergence from the teacher": _curves(history, "distillation/"),
        "learning rate": _curves(history, "lr/"),
    }
    panels = {title: lines for title, lines in panels.items() if any(lines.values())} or {"nothing was logged": {}}
    with figure(path, size=(4.0 * len(panels), 3.6)) as drawing:
        grid = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, lines) in zip(grid, panels.items(), strict=True):
            for label, line in lines.items():
                if not line:
                    continue
                axes.plot(*zip(*line, strict=True), label=label, linewidth=1.2, marker="." if len(line) < 30 else "")
            axes.set(xlabel="step", title=title)
            if 1 < len(lines) < 10:
                axes.legend(fontsize=8)
        drawing.suptitle(f"Stage {name}")


def _curves(history: History, prefix: str, suffix: str = "") -> dict[str, list[tuple[int, float]]]:
    """Return the curve of every logged name between a prefix and a suffix, without the aggregates."""
    names = [name for name in logged_names(history, prefix, suffix) if name not in AGGREGATES]
    return {name.removeprefix(prefix).removesuffix(suffix): logged(history, name) for name in names}
