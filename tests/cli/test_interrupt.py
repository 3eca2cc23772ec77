"""Ctrl-C ends a verb with 130 and a way to go on, whatever a library makes of it."""

import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator

import pytest

from hf_warmscale.cli.entry import run


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Hear Ctrl-C, which a suite in the background of a shell would pass on as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Press Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def swallow() -> None:
    """Do as torch does, whose `asarray` asks Python for a length."""
    try:
        press()
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None


@pytest.mark.parametrize("work", [press, swallow])
def test_ctrl_c_is_never_a_user_error(work: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = Namespace(run=lambda _: work(), after_interrupt="run it again.", debug=False)
    assert run(arguments) == 130
    assert capsys.readouterr().err == "\nInterrupted: run it again.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
