"""Where the trials of a search are kept: a journal file that survives a kill, or any storage of Optuna."""

import os
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

LOCK_SECONDS = 10
"""A lock this old was left by a killed process: one entry takes milliseconds."""


def open_storage(storage: str | os.PathLike[str] | BaseStorage | None) -> BaseStorage:
    """Open the storage of a study.

    Args:
        storage (`str`, `PathLike`, `BaseStorage` or `None`): the path of a journal file, which is made if it is not
            there; a URL (`sqlite:///...`, `postgresql://...`); a storage; `None` keeps the trials in memory.

    Raises:
        FileNotFoundError: if the folder of the journal does not exist.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return get_storage(storage)
    if "://" in os.fspath(storage):
        return get_storage(os.fspath(storage))
    return open_journal(Path(storage))


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
