"""Is the worker that runs a trial still alive?"""

import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil

logger = logging.getLogger(__name__)

BEAT_SECONDS = 30.0
"""How often a worker shows that it is still scoring its trial."""
SILENT_SECONDS = 300.0
"""A worker on another machine that has been silent for this long is given up."""


def this_worker() -> str:
    """Identify this process: machine, process id, and start time, since ids are reused."""
    process = psutil.Process()
    return f"{this_machine()}/{process.pid}/{start_of(process)}"


def start_of(process: psutil.Process) -> str:
    """Return when a process started, in a form that stays the same for as long as it runs.

    Linux counts the ticks from the boot of the machine. The time of day would not do: it is made of those ticks and of
    the clock, and when the clock is set, all running processes seem to have started at another time.

    Raises:
        psutil.NoSuchProcess: if it has ended.
    """
    try:
        values = Path(f"/proc/{process.pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or this is not Linux
        return f"{process.create_time():.2f}"
    # The second value is the name in parentheses, which may hold both; the 22nd of all is the start.
    return values.rpartition(")")[2].split()[19]


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

    A call that fails is logged and made again: a storage that cannot be written for a moment must not make a living
    worker look dead. If it lasts, the worker finds out as it ends its trial.

    Args:
        beat (`Callable`): shows the other workers that this one is alive.
        every (`float`): seconds between two calls, and before the first.
    """
    done = Event()

    def run() -> None:
        while not done.wait(every):
            try:
                beat()
            except Exception as error:  # storages raise what their libraries do
                logger.warning("The storage of the search could not be written, it is tried again: %s", error)

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
        return found.status() != psutil.STATUS_ZOMBIE and start_of(found) == created
    except psutil.NoSuchProcess:
        return False
