"""Where the trials of a search are kept: a journal file that survives a kill, or any storage of Optuna."""

import os
import time
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

LOCK_SECONDS = 10
"""A lock this old was left by a killed process: one entry takes milliseconds."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each new try to open a database: of workers that start at once, one makes its tables."""


def open_storage(storage: str | os.PathLike[str] | BaseStorage | None) -> BaseStorage:
    """Open the storage of a study.

    Args:
        storage (`str`, `PathLike`, `BaseStorage` or `None`): the path of a journal file, which is made if it is not
            there; a URL (`sqlite:///...`, `postgresql://...`); a storage; `None` keeps the trials in memory.

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
    """Open the database of a URL, and make its tables if it has none.

    Raises:
        ValueError: if it cannot be opened; the URL, which may hold a password, is not repeated.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return get_storage(url)
        except (ImportError, SQLAlchemyError, StorageInternalError) as error:
            pause = None if isinstance(error, ImportError | ArgumentError) else next(pauses, None)
            if pause is None:
                reason = str(error).partition("\n")[0].rstrip(".")
                raise ValueError(f"The {url.partition(':')[0]} storage cannot be opened ({reason}).") from error
            time.sleep(pause)


def open_journal(path: Path) -> JournalStorage:
    """Open a journal file, without the entry that a killed process did not finish.

    Raises:
        FileNotFoundError: if its folder does not exist.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute().parent} for the journal {path.name}.")
    lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
    if path.is_file():
        lock.acquire()
        try:
            _drop_torn_entry(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_torn_entry(path: Path) -> None:
    """Entries are lines; the next one would be glued to a line that has no end, and nothing could be read again."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        os.truncate(path, end)
