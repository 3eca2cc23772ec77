"""Studies: committed lists of runs, resumable, one JSON per run with its provenance. Nothing is trained here."""

from hf_warmscale.studies.plan import PlannedRun, run_all, workers
from hf_warmscale.studies.provenance import content_hash, provenance_line, tokens_hash
from hf_warmscale.studies.script import StudyOptions, listing, study_options, wanted_runs
from hf_warmscale.studies.seeds import SeedMean, mean_over_seeds
from hf_warmscale.studies.study import Study, open_study, read_runs, write_result

__all__ = [
    "PlannedRun",
    "SeedMean",
    "Study",
    "StudyOptions",
    "content_hash",
    "listing",
    "mean_over_seeds",
    "open_study",
    "provenance_line",
    "read_runs",
    "run_all",
    "study_options",
    "tokens_hash",
    "wanted_runs",
    "workers",
    "write_result",
]
