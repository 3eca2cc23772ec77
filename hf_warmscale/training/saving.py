"""Checkpoints that are complete or absent: written in a staging folder of the run, then moved, later rotated out."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_warmscale import staging

STAGING = "_partial"
"""The folder of a run that holds the checkpoint being written. `get_last_checkpoint` does not take it for one, and
`Trainer` leaves names with a leading underscore out of its uploads, which run while training goes on."""


def staging_of(run: str | os.PathLike[str]) -> Path:
    """Return the folder of a run in which checkpoints are written."""
    return Path(run) / STAGING


def sweep(run: str | os.PathLike[str]) -> None:
    """Remove the half-written checkpoint of a killed run.

    A run that was killed while it replaced a checkpoint has set the old one aside, and nothing stands in its place:
    the old one is put back.
    """
    for old in staging_of(run).glob(f"*{staging.SET_ASIDE_SUFFIX}"):
        final = Path(run) / old.name.removesuffix(staging.SET_ASIDE_SUFFIX)
        if not final.exists():
            old.rename(final)
    for name in (STAGING, ".partial"):  # the second is that of version 0.1.0
        shutil.rmtree(Path(run) / name, ignore_errors=True)


def publish(run: str | os.PathLike[str], name: str) -> Path:
    """Move the complete checkpoint `name` out of the staging folder; an older one of that name gives way.

    Returns:
        `Path`: where it is now.
    """
    final = Path(run) / name
    staging.publish(staging_of(run) / name, final, replace=True)
    shutil.rmtree(staging_of(run), ignore_errors=True)
    return final


def rotate(checkpoints: Sequence[Path], limit: int | None, best: str | None, *, only_best: bool = False) -> None:
    """Delete the oldest checkpoints beyond a limit, but never the last one, nor the best.

    Trainer goes by the time of change, which a copied folder has lost, and takes any `checkpoint-*` for its own.

    Args:
        checkpoints (`Sequence[Path]`): of the run, the oldest first.
        limit (`int`, *optional*): how many to keep; no limit by default.
        best (`str`, *optional*): the best checkpoint.
        only_best (`bool`): let the last one go too, as Trainer does at the end of a run with a limit of one.
    """
    if not limit or limit <= 0:
        return
    protected = {Path(best).resolve()} if best else set()
    if checkpoints and not (only_best and best):
        protected.add(checkpoints[-1].resolve())
    # The last and the best may be two, with a limit of one.
    surplus = len(checkpoints) - max(limit, len(protected))
    for path in [path for path in checkpoints if path.resolve() not in protected][: max(surplus, 0)]:
        shutil.rmtree(path, ignore_errors=True)
