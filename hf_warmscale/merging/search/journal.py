"""The storage of a search: a journal file that survives a kill, or any storage of Optuna."""

import os
import time
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

LOCK_SECONDS = 10
"""A lock of this age was left by a killed process: writing an entry takes milliseconds."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each retry to open a database: of several workers that start together, one creates its tables."""


def open_storage(storage: str | os.PathLike[str] | BaseStorage | None) -> BaseStorage:
    """Open the storage of a study.

    Args:
        storage (`str`, `PathLike`, `BaseStorage` or `None`): the path of a journal file, which is created if it does
            not exist; a URL (`sqlite:///...`, `postgresql://...`); a storage; `None` keeps the trials in memory.

    Raises:
        FileNotFoundError: if the folder of the journal does not exist.
        ValueError: if the database of a URL cannot be opened.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return get_storage(storage)
    if "://" in os.fspath(storage):
        return open_database(os.fspath(storage))
    return open_journal(Path(storage))


def open_database(url: str) -> BaseStorage:
    """Open the database of a URL, and create its tables if it has none.

    Raises:
        ValueError: if it cannot be opened; the message does not repeat the URL, which may hold a password.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return get_storage(url)
        except (ImportError, SQLAlchemyError, StorageInternalError) as error:
            # A missing driver or a wrong URL does not heal with time.
            pause = None if isinstance(error, ImportError | ArgumentError) else next(pauses, None)
            if pause is None:
                reason = str(error).partition("\n")[0].rstrip(".")
                raise ValueError(f"The {url.partition(':')[0]} storage cannot be opened ({reason}).") from error
            time.sleep(pause)


def open_journal(path: Path) -> JournalStorage:
    """Open a journal file, and remove the last entry if a killed process did not finish it.

    Raises:
        FileNotFoundError: if its folder does not exist.
        PermissionError: if its folder cannot be written to.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} for the journal {path.name}.")
    if not os.access(folder, os.W_OK | os.X_OK):  # the lock is a file beside the journal
        raise PermissionError(f"The folder {folder} cannot be written to; name another output or storage.")
    lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
    if path.is_file():
        # Under the lock: without it a line that another worker is writing would look torn.
        lock.acquire()
        try:
            _drop_torn_entry(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_torn_entry(path: Path) -> None:
    """Entries are lines: the next one would be appended to an unfinished line, and the file would be unreadable."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        os.truncate(path, end)
