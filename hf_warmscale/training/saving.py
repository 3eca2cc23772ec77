"""Checkpoints that are complete or absent: written in a staging folder of the run, then moved, later rotated out."""

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import mkdtemp

from hf_warmscale import staging
from hf_warmscale.checkpoints.portable import content_to_publish

STAGING = "_partial"
"""The folder of a run that holds the checkpoint being written. `get_last_checkpoint` does not take it for one, and
`Trainer` leaves names with a leading underscore out of its uploads, which run while training goes on."""

UPLOAD = "_upload-"
"""The beginning of the name of a folder that holds the copy of a running upload."""

WITHHELD = ("training_args.bin", "events.out.tfevents.*")
"""Files that hold paths of the machine where no filter reaches: a pickle, and TensorBoard's logs of the arguments."""


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
    for path in (*Path(run).glob(f"{UPLOAD}*"), Path(run) / STAGING, Path(run) / ".partial"):  # the last: of 0.1.0
        shutil.rmtree(path, ignore_errors=True)


def publish_checkpoint(run: str | os.PathLike[str], name: str) -> Path:
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


def copy_to_publish(folder: Path, run: str | os.PathLike[str]) -> Path:
    """Copy a folder for an upload, without local paths and without what `Trainer` leaves out of its uploads.

    Large files are linked, so they stay available to the upload while training goes on and rotates checkpoints.

    Args:
        folder (`Path`): the run, or one of its checkpoints.
        run (`str` or `PathLike`): where the copy is made.

    Returns:
        `Path`: the copy; the caller deletes it.
    """
    copy = Path(mkdtemp(prefix=UPLOAD, dir=run))
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(("_", "checkpoint-"))]
        target = copy / Path(parent).relative_to(folder)
        target.mkdir(exist_ok=True)
        for name in files:
            if not name.startswith("_") and not any(fnmatch(name, pattern) for pattern in WITHHELD):
                _copy(content_to_publish(Path(parent, name)), target / name)
    return copy


def _copy(content: bytes | Path, target: Path) -> None:
    if isinstance(content, bytes):
        target.write_bytes(content)
        return
    try:
        target.hardlink_to(content)
    except OSError:  # a file system without links
        shutil.copyfile(content, target)
