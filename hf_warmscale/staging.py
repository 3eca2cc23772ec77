"""Write beside the target, rename when complete: a killed write is never mistaken for a result.

No other module of the package does this. It imports nothing of the package, because figures need it too.
"""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

STAGING_SUFFIX = ".partial"
LOCK_SUFFIX = ".lock"
SET_ASIDE_SUFFIX = ".old"
FILE_LOCK_SECONDS = 60.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LITTLE_SPACE = 1 << 20
SYNCED_AT_ONCE = 8


def refuse_existing(output: str | os.PathLike[str]) -> None:
    """Refuse an output folder that already holds something.

    Raises:
        ValueError: if `output` is a file, a mount point, or a folder that is not empty.
        OSError: if it cannot be looked at, or is a link to itself.

    Args:
        output (`str` or `PathLike`): where a result shall go.

    Example:

    ```python
    >>> refuse_existing("a-new-folder")  # for a folder that is not empty it raises
    ```
    """
    output = Path(output)
    try:
        is_folder = stat.S_ISDIR(output.stat().st_mode)  # raises OSError if symbolic links form a loop
    except (FileNotFoundError, NotADirectoryError):
        return
    if not is_folder:
        raise ValueError(f"The output {output} is a file; name a new or an empty folder.")
    if any(output.iterdir()):
        raise ValueError(f"The output folder {output} is not empty; name a new or an empty folder.")
    if output.is_mount():
        raise ValueError(f"The output folder {output} is a mount point; name a new folder inside it.")


@contextmanager
def staged_directory(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder beside `output` that becomes `output` when the block ends without an error.

    The rename is atomic: whoever looks at `output` sees nothing or all of it. On an error, or a Ctrl-C, the staging
    folder is removed; what a SIGKILL leaves behind is swept by the next write to the same output.

    Args:
        output (`str` or `PathLike`): the folder to make; it must not exist or be empty. A link is followed.

    Raises:
        ValueError: if `output` is not empty.
        OSError: if the disk is full, the folder cannot be written, or another process is writing it; nothing is left
            at `output`.

    Example:
        >>> with staged_directory("merged") as folder:
        ...     model.save_pretrained(folder)
    """
    refuse_existing(output)
    output = Path(output).resolve()
    with locked(output, wait=0.0):
        refuse_existing(output)  # another process may have completed it before the lock was free
        staging = output.with_name(f".{output.name}{STAGING_SUFFIX}")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with explained_full_disk(output):
                staging.mkdir()
                yield staging
                publish(staging, output)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def publish(staging: Path, final: Path, *, replace: bool = False) -> None:
    """Move a complete folder to its place, so that it survives a power cut.

    Args:
        staging (`Path`): a folder on the same disk as `final`.
        final (`Path`): its place, where nothing is or an empty folder.
        replace (`bool`): remove the folder that is there.

    Raises:
        OSError: if `final` is not empty and `replace` is off.
    """
    # The order matters in a power cut: without the first sync, the name could be there and the content lost; the last
    # one makes the name itself durable.
    sync_tree(staging)
    old = staging.with_name(staging.name + SET_ASIDE_SUFFIX)
    # A folder that is not empty cannot be replaced in one step, so the old one is set aside first. A crash between the
    # two renames leaves it under this name, and nothing at `final`.
    if replace and final.exists():
        final.rename(old)
    staging.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; the file written there replaces `path` when the block ends without an error.

    Of several writers the last one wins. The file survives a power cut.

    Args:
        path (`str` or `PathLike`): the file to make or to replace.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was at `path` is still there.

    Example:
        >>> with staged_file("optimizer.pt") as staging:
        ...     torch.save(state, staging)
    """
    path = Path(path)
    staging = path.with_name(f".{path.name}{STAGING_SUFFIX}")
    with locked(path, wait=FILE_LOCK_SECONDS):
        try:
            with explained_full_disk(path):
                yield staging
                sync(staging)
                staging.replace(path)
                sync(path.parent)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise


@contextmanager
def explained_full_disk(output: Path) -> Iterator[None]:
    """Turn the errors that libraries raise on a full disk into one sentence.

    Args:
        output (`Path`): what is being written, to be named.

    Raises:
        OSError: if there is no room left.

    Example:

    ```python
    >>> with explained_full_disk(Path("model")):
    ...     write_text("model/notes.txt", "grown")
    ```
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error, output.parent):
            raise
        raise OSError(f"There is no room left to write {output}; free some space or name another disk.") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically (UTF-8); of several writers the last one wins.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was at `path` is still there.

    Args:
        path (`str` or `PathLike`): the file to write; it is replaced.
        text (`str`): its content.

    Example:

    ```python
    >>> write_text("notes.txt", "grown")
    ```
    """
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file atomically, indented, with a final newline.

    Raises:
        ValueError: if `content` holds NaN or an infinity.
        OSError: as `write_text`.

    Args:
        path (`str` or `PathLike`): the file to write; it is replaced.
        content (`Mapping` or `list`): plain values.

    Example:

    ```python
    >>> write_json("report.json", {"nll": 3.4})
    >>> Path("report.json").read_text()
    '{\\n  "nll": 3.4\\n}\\n'
    ```
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path (`str` or `PathLike`): of the file.
        remedy (`str`): what to do if it is damaged; the end of the sentence of the error.

    Raises:
        ValueError: if it is damaged, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no object); {remedy}.")
    return content


def as_json(content: Any) -> str:
    """Return JSON as `write_json` writes it, with null where a number is NaN or infinite: JSON has no such numbers."""
    return json.dumps(_without_non_finite(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _without_non_finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _without_non_finite(value) for key, value in content.items()}
    return [_without_non_finite(value) for value in content] if isinstance(content, list | tuple) else content


@contextmanager
def locked(target: Path, *, wait: float) -> Iterator[None]:
    """Become the only writer of `target` on this machine. The system frees the lock of a writer that died.

    Args:
        target (`Path`): what is written; the lock is a file beside it.
        wait (`float`): seconds to wait for another writer; -1 waits until it is done.

    Raises:
        OSError: if another process is still writing after that, or the folder of `target` cannot be written.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"The folder {parent} cannot be made ({error.strerror}); name another output.") from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {parent} cannot be written to; name another output.")
    lock_file = parent / f".{target.name}{LOCK_SUFFIX}"
    try:
        with FileLock(lock_file, timeout=wait):
            try:
                yield
            finally:
                # Removed while the lock is held: a waiting process sees that the file is gone and makes a new one.
                lock_file.unlink(missing_ok=True)
    except Timeout as error:
        raise OSError(f"Another process is writing {target}; wait for it, or name another output.") from error


def _is_disk_full(error: Exception, folder: Path) -> bool:
    """Tell a full disk from other errors.

    The Rust libraries (safetensors, tokenizers) name the error's number in text only, `torch.save` not at all, and
    `datasets` wraps the error of the system in one of its own.
    """
    if (
        error.__cause__ is not None
        and isinstance(error.__cause__, Exception)
        and _is_disk_full(error.__cause__, folder)
    ):
        return True
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # The error of `torch.save` names no cause, so the free space has to tell.
    if isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < LITTLE_SPACE:
        return True
    return any(f"os error {number}" in str(error) for number in DISK_FULL)


def sync_tree(folder: Path) -> None:
    """Make a folder and all that is in it survive a power cut.

    The files are synced side by side: each waits for the disk, and the disk takes them together.
    """
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        list(pool.map(sync, folder.rglob("*")))
    sync(folder)


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
