"""What this package asks of huggingface_hub's client beyond its settings; a test of each function says what broke."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_session

READING = ("GET", "HEAD")

PATIENCE_WITH_WRITING = 6
"""The Hub answers a commit of many files late, so whatever writes may wait this many times as long."""


def limit_waits() -> None:
    """Let no request of huggingface_hub wait for ever for a Hub that took the connection and says nothing.

    Its client has no time limit, and the first requests of a download or an upload bring none along. The limit is that
    of `HF_HUB_DOWNLOAD_TIMEOUT` (10 seconds), six times that for a request that writes. It is a limit of silence: a
    transfer that makes progress may take as long as it wants. A request that has limits of its own keeps them.
    """
    if constants.HF_HUB_OFFLINE:
        return
    client = get_session()  # anew each time: the library makes another one after an error
    hooks = client.event_hooks
    if _limit_wait not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit_wait]}


def _limit_wait(request: Any) -> None:  # of httpx, or of the fork of it that the library uses from 2.0 on
    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT * (1 if request.method in READING else PATIENCE_WITH_WRITING)
    limits = request.extensions.get("timeout", {})
    # Not of the pool: waiting there for a connection of one's own to become free is not the Hub's silence.
    missing = [name for name in ("connect", "read", "write") if limits.get(name) is None]
    request.extensions["timeout"] = {**limits, **dict.fromkeys(missing, patience)}


@contextmanager
def optional_files() -> Iterator[None]:
    """Download files that a repository need not have: the library warns of patterns that no file matches."""
    logger = logging.getLogger("huggingface_hub._snapshot_download")
    logger.addFilter(_no_file_missed)
    try:
        yield
    finally:
        logger.removeFilter(_no_file_missed)


def _no_file_missed(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No files matched")
