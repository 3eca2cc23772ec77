"""The whole pipeline on real text: pretrain, grow, continue with replay, merge; resumable at every step."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_warmscale.quickstart.data import prepare_data
from hf_warmscale.quickstart.merge import choose_model, merge_constant_phase
from hf_warmscale.quickstart.report import write_report
from hf_warmscale.quickstart.runs import finished_runs, planned_runs, train_run, write_recipe
from hf_warmscale.quickstart.scores import models_of, score_models
from hf_warmscale.quickstart.settings import DEFAULT_TOKENS, Settings
from hf_warmscale.studies import Study, open_study, provenance_line, run_all

RESULTS = "results"


def run_quickstart(output: str | os.PathLike[str], *, tokens: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Take real text through the whole pipeline and leave a stock model, a report and a picture in `output`.

    Pretrains a small muP model on the documentation of the installed packages, grows it to twice its width (beside the
    base trained on and a model from scratch), continues it on their source code with and without replay, and merges
    the checkpoints of the constant phase. `results/` holds one JSON per training run with its provenance. Call it
    again to continue an interrupted run.

    Args:
        output (`str` or `PathLike`): a new or empty folder, or that of an interrupted run.
        tokens (`int`, *optional*): the budget of all training together; about five minutes on two cores by default.
        seed (`int`): of everything random.

    Returns:
        `dict`: what `report.json` holds.

    Raises:
        ValueError: if `output` holds something else, or a run with other settings or other versions of the libraries,
            or if the installed packages hold too little text for the budget.

    Example:

    ```python
    >>> report = run_quickstart("warmscale-quickstart", tokens=100_000)
    >>> report["losses"]["grown"]["prose"]["nll"]
    ```
    """
    settings = Settings(tokens=DEFAULT_TOKENS if tokens is None else tokens, seed=seed)
    folder = Path(output)
    study = _open(folder, settings)
    try:
        data = prepare_data(folder / "data", settings)
    except ValueError:
        if not (folder / "data").exists():  # too little text: the folder is free for a smaller budget
            shutil.rmtree(study.folder)
        raise
    # The rows are made after the folder was taken, so that a refusal costs no time; each result names them.
    study = replace(study, tokens=data.tokens_hash())
    plan = planned_runs(settings)
    run_all(study, plan, lambda run: train_run(run, folder / "runs", data, settings))
    runs = finished_runs(folder / "runs", settings)
    write_recipe(folder / "continue.yaml", runs.grown, data, settings)
    merge = merge_constant_phase(folder / "merge", runs.continued, data, settings)
    chosen = choose_model(folder / "model", runs.continued, merge, data)
    scores = score_models(models_of(runs, merge.folder), data)
    provenance = provenance_line(study.result(run.name) for run in plan)
    return write_report(folder, settings, runs, merge, chosen, scores, provenance)


def _open(folder: Path, settings: Settings) -> Study:
    """Begin the study of these settings in a new or empty folder, or open the one that is there."""
    results = folder / RESULTS
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not results.is_dir():
        raise ValueError(
            f"The output {folder} is not empty and does not hold a quickstart; name a new or an empty folder."
        )
    return open_study(results, settings.to_dict())
