"""Checkpoints that are complete or absent: written in a staging folder of the run, then moved."""

import os
import shutil
from pathlib import Path

from hf_warmscale import staging

STAGING = "_partial"
"""The folder of a run that holds the checkpoint being written. `get_last_checkpoint` does not take it for one, and
`Trainer` leaves names with a leading underscore out of its uploads, which run while training goes on."""


def staging_of(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run in which checkpoints are written."""
    return Path(run) / STAGING


def sweep(run: str | os.PathLike[str]) -> None:
    """Remove the half-written checkpoint of a killed run."""
    shutil.rmtree(staging_of(run), ignore_errors=True)


def publish(run: str | os.PathLike[str], name: str) -> Path:
    """Move the complete checkpoint `name` out of the staging folder; an older one of that name gives way.

    Returns:
        `Path`: where it is now.
    """
    final = Path(run) / name
    staging.publish(staging_of(run) / name, final, replace=True)
    sweep(run)
    return final
