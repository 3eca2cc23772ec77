"""The whole pipeline on real text: pretrain, grow, continue with replay, merge; resumable at every step."""

import json
import os
from pathlib import Path
from typing import Any

from hf_warmscale.checkpoints import write_json
from hf_warmscale.quickstart.data import prepare_data
from hf_warmscale.quickstart.merge import choose_model, merge_constant_phase
from hf_warmscale.quickstart.report import write_report
from hf_warmscale.quickstart.runs import train_all
from hf_warmscale.quickstart.scores import models_of, score_models
from hf_warmscale.quickstart.settings import DEFAULT_TOKENS, Settings

SETTINGS_FILE = "settings.json"


def run_quickstart(output: str | os.PathLike[str], *, tokens: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Take real text through the whole pipeline and leave a stock model, a report and a picture in `output`.

    Pretrains a small muP model on the documentation of the installed packages, grows it to twice its width (with a
    from-scratch control), continues it on their source code with and without replay, and merges the checkpoints of the
    constant phase. Call it again to continue an interrupted run.

    Args:
        output (`str` or `PathLike`): a new or empty folder, or that of an interrupted run.
        tokens (`int`, *optional*): the budget of all training together; about four minutes on two cores by default.
        seed (`int`): of everything random.

    Returns:
        `dict`: what `report.json` holds.

    Raises:
        ValueError: if `output` holds something else or a run with other settings, or if the installed packages hold
            too little text for the budget.

    Example:

    ```python
    >>> report = run_quickstart("warmscale-quickstart", tokens=100_000)
    >>> report["losses"]["grown"]["prose"]["nll"]
    ```
    """
    settings = Settings(tokens=DEFAULT_TOKENS if tokens is None else tokens, seed=seed)
    folder = _claim(Path(output), settings)
    try:
        data = prepare_data(folder / "data", settings)
    except ValueError:
        if not (folder / "data").exists():  # too little text: the folder is free for a smaller budget
            (folder / SETTINGS_FILE).unlink()
        raise
    runs = train_all(folder / "runs", data, settings)
    merge = merge_constant_phase(folder / "merge", runs.continued, data, settings)
    chosen = choose_model(folder / "model", runs.continued, merge, data)
    scores = score_models(models_of(runs, merge.folder), data)
    return write_report(folder, settings, runs, merge, chosen, scores)


def _claim(folder: Path, settings: Settings) -> Path:
    """Mark the folder as a quickstart of these settings, or recognise it as one."""
    path = folder / SETTINGS_FILE
    if path.is_file():
        saved = _read_settings(path)
        changed = [name for name, value in settings.to_dict().items() if saved.get(name) != value]
        if changed:
            raise ValueError(
                f"{folder} holds a quickstart with another {', '.join(changed)}; name another output folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"The output {folder} is not empty and does not hold a quickstart; name a new or an empty folder."
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings.to_dict())
    return folder


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} is damaged, so the quickstart beside it cannot continue; name another output folder."
        )
    return saved
