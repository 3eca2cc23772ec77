"""What a result is a result of: versions, the commit, the study and the tokens."""

import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from train import STUDY

LIBRARIES = ("torch", "transformers", "peft")


def provenance(work: Path) -> dict[str, Any]:
    """Return the provenance of a measurement made now, on the tokens in `work`."""
    git = ["git", "-C", str(STUDY.parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "hf_warmscale": version("hf-warmscale"),
        "commit": commit or None,
        **{name: version(name) for name in LIBRARIES},
        "threads": torch.get_num_threads(),
        "study_sha256": sha256(STUDY),
        "tokens_sha256": {path.name: sha256(path) for path in sorted((work / "tokens").glob("*.npy"))},
    }


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
