"""Run a function in a forked process that can be killed: it starts at once, with everything imported."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

FORK = multiprocessing.get_context("fork")


def fork(function: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """Start `function` in a child; return the child and the other end of the pipe that it is given."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=function, args=(there,), daemon=True)
    process.start()
    there.close()
    return process, here


def outcome(action: Callable[[], None]) -> str:
    """Return `done`, or the class and the message of what `action` raised."""
    try:
        action()
    except BaseException as error:
        return f"{type(error).__name__} {error}"
    return "done"
