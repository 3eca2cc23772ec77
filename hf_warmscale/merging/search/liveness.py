"""Is the worker that runs a trial still alive?"""

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil

BEAT_SECONDS = 30.0
"""How often a worker shows that it is still scoring its trial."""
SILENT_SECONDS = 300.0
"""A worker on another machine that has been silent for this long is given up."""


def this_worker() -> str:
    """Identify this process: machine, process id, and start time, since ids are reused."""
    process = psutil.Process()
    return f"{this_machine()}/{process.pid}/{process.create_time():.2f}"


def this_machine() -> str:
    """Identify what process ids are unique in: the machine, and within it the container.

    The host name alone would not do: containers may share it, and each of them counts its processes from 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()  # "pid:[4026531836]"
    except OSError:  # not Linux
        return f"{socket.gethostname()}-{uuid.getnode():x}"
    return f"{socket.gethostname()}-{boot}-{namespace}"


@contextmanager
def beating(beat: Callable[[], None], *, every: float) -> Iterator[None]:
    """Call `beat` from a thread, repeatedly, until the block ends.

    Args:
        beat (`Callable`): shows the other workers that this one is alive.
        every (`float`): seconds between two calls, and before the first.
    """
    done = Event()

    def run() -> None:
        while not done.wait(every):
            beat()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Watch:
    """Tell which workers are gone: those of this machine by their process, others by how long they have been silent.

    Silence is measured with the clock of this machine, since clocks differ.

    Args:
        clock (`Callable`): the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[int, float]] = {}

    def is_gone(self, worker: str, trial: int, beats: int) -> bool:
        """Tell whether a worker will not finish its trial.

        Args:
            worker (`str`): the result of `this_worker` there.
            trial (`int`): the number of the trial.
            beats (`int`): how often the worker has shown that it is still scoring it.
        """
        host, process, created = worker.rsplit("/", 2)
        if host == this_machine():
            # Certain and at once; silence would take minutes to show the same.
            return not _runs(int(process), created)
        before, since = self._seen.get(trial, (None, 0.0))
        # The first look at a trial only starts the clock, so a resumed search waits for its silence too.
        if beats != before:
            self._seen[trial] = (beats, self._clock())
            return False
        return self._clock() - since > SILENT_SECONDS


def _runs(process: int, created: str) -> bool:
    try:
        found = psutil.Process(process)
        # A killed process whose parent has not waited for it is still listed.
        return found.status() != psutil.STATUS_ZOMBIE and f"{found.create_time():.2f}" == created
    except psutil.NoSuchProcess:
        return False
