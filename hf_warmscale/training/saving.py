"""Checkpoints that are complete or not there: written in a staging folder, then renamed."""

import os
import shutil
from pathlib import Path

from hf_warmscale.checkpoints.staging import sync, sync_tree

STAGING = ".partial"
"""The folder of a run that holds what is being written; its name is never taken for a checkpoint."""


def staging_of(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run in which checkpoints are written."""
    return Path(run) / STAGING


def sweep(run: str | os.PathLike[str]) -> None:
    """Remove what a killed run left half-written."""
    shutil.rmtree(staging_of(run), ignore_errors=True)


def publish(run: str | os.PathLike[str], name: str) -> Path:
    """Move the complete checkpoint `name` out of the staging folder; an older one of that name gives way.

    Returns:
        `Path`: where it is now.
    """
    staging, final = staging_of(run), Path(run) / name
    sync_tree(staging / name)
    if final.exists():
        final.rename(staging / f"{name}.old")
    (staging / name).rename(final)
    sync(final.parent)
    sweep(run)
    return final
