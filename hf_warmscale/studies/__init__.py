"""Studies: committed lists of runs, resumable, one JSON per run with its provenance. Nothing is trained here."""

from hf_warmscale.studies.plan import PlannedRun, run_all, workers
from hf_warmscale.studies.provenance import content_hash, provenance_line, tokens_hash
from hf_warmscale.studies.study import Study, open_study, read_runs, write_result

__all__ = [
    "PlannedRun",
    "Study",
    "content_hash",
    "open_study",
    "provenance_line",
    "read_runs",
    "run_all",
    "tokens_hash",
    "workers",
    "write_result",
]
