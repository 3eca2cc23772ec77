"""optuna-dashboard shows a search as it is stored."""

import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
from optuna_dashboard import wsgi

from hf_warmscale.merging import search_merge
from tests.merging.trained import documents


def test_optuna_dashboard_shows_a_merge_search(trajectory: list[Path], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    texts = documents()[:16]
    search_merge(trajectory[-2:], select=texts[::2], confirm=texts[1::2], n_trials=3, tolerance=0.0, storage=storage)
    application = wsgi(optuna.storages.RDBStorage(storage))
    (study,) = asked(application, "/api/studies")["study_summaries"]
    trials = asked(application, f"/api/studies/{study['study_id']}")["trials"]
    assert len(trials) >= 3 and all(trial["state"] == "Complete" for trial in trials)
    assert all(trial["params"] for trial in trials)


def asked(application: Any, path: str) -> dict[str, Any]:
    """Return what an application answers to one request."""
    environment: dict[str, Any] = {}
    setup_testing_defaults(environment)
    environment["PATH_INFO"] = path
    codes: list[str] = []
    body = b"".join(application(environment, lambda code, *rest: codes.append(code)))
    assert codes == ["200 OK"]
    content: dict[str, Any] = json.loads(body)
    return content
