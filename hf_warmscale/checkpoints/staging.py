"""Write beside the target, rename when complete: a killed write is never mistaken for a result."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGING_SUFFIX = ".partial"


def refuse_existing(output: str | os.PathLike[str]) -> None:
    """Refuse an output folder that already holds something.

    Raises:
        ValueError: if `output` is a file or a folder that is not empty.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"The output {output} is a file; name a new or an empty folder.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"The output folder {output} is not empty; name a new or an empty folder.")


@contextmanager
def staged_directory(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder beside `output` that becomes `output` when the block ends without an error.

    The rename is atomic: whoever looks at `output` sees nothing or all of it. On an error, or a Ctrl-C, the staging
    folder is removed; what a SIGKILL leaves behind is swept by the next write to the same output.

    Args:
        output (`str` or `PathLike`): the folder to make; it must not exist or be empty.

    Raises:
        ValueError: if `output` is not empty.
        OSError: if the disk is full or the folder cannot be written; nothing is left at `output`.
    """
    output = Path(output)
    refuse_existing(output)
    staging = output.with_name(f".{output.name}{STAGING_SUFFIX}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                _sync(path)
        if output.is_dir():
            output.rmdir()
        staging.rename(output)
        _sync(output.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    path = Path(path)
    staging = path.with_name(f".{path.name}{STAGING_SUFFIX}")
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file atomically, indented, with a final newline; NaN is refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
