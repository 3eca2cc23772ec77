"""Is the process that ran a trial still alive?"""

import socket
from datetime import datetime, timedelta

import psutil

ABANDONED_AFTER = timedelta(hours=1)
"""A trial of another machine, whose processes cannot be seen from here, is given up after this time."""


def this_worker() -> str:
    """Identify this process: machine, process id, and start time, since ids are used again."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"


def is_alive(worker: str, started: datetime | None) -> bool:
    """Tell whether a worker can still finish a trial that it started.

    Args:
        worker (`str`): what `this_worker` returned there.
        started (`datetime` or `None`): when the trial started, local time.
    """
    age = datetime.now() - started if started else timedelta.max
    host, process, created = worker.rsplit("/", 2)
    if host != socket.gethostname():
        return age < ABANDONED_AFTER
    try:
        return f"{psutil.Process(int(process)).create_time():.2f}" == created
    except psutil.NoSuchProcess:
        return False
