"""Remember Ctrl-C: a C++ extension that is interrupted may raise another error instead of KeyboardInterrupt."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed.

    torch, for example, turns Ctrl-C during the construction of a tensor into a ValueError about its shape.

    Args:
        pressed (`bool`): since the block of `noticed` began.
    """

    pressed: bool = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Remember Ctrl-C during the block; it still raises KeyboardInterrupt."""
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler or current_thread() is not main_thread():
            yield
            return

        def notice(number: int, frame: FrameType | None) -> None:
            self.pressed = True
            signal.default_int_handler(number, frame)

        signal.signal(signal.SIGINT, notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
