"""Requests of huggingface_hub's client wait for a silent Hub as long as they may, and no longer."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from huggingface_hub import close_session, constants, get_session

from hf_warmscale.compat.huggingface_hub import PATIENCE_WITH_WRITING, _limit_wait, limit_waits

PATIENCE, BYTES = 0.4, 8


@contextmanager
def slow_server(pause: float | None) -> Iterator[str]:
    """Take a connection, and answer byte by byte; with no pause to keep, never."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if pause is not None:
            threading.Thread(target=drip, args=(listener, pause), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def drip(listener: socket.socket, pause: float) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n".encode())
        for _ in range(BYTES):
            time.sleep(pause)
            connection.sendall(b".")


@pytest.fixture(autouse=True)
def a_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client out, with a short limit, and leave none of it behind."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE)
    close_session()
    yield
    close_session()


def test_silence_ends_and_progress_does_not() -> None:
    """The download takes twice the limit, no byte of it half as long."""
    limit_waits()
    limit_waits()  # once is enough, twice no harm
    with slow_server(None) as url, pytest.raises(Exception, match="timed out"):
        get_session().get(url, timeout=None)  # as huggingface_hub asks for the state of a repository
    with slow_server(2 * PATIENCE / BYTES) as url:
        assert len(get_session().get(url, timeout=None).content) == BYTES


@pytest.mark.parametrize("method, patience", [("GET", PATIENCE), ("POST", PATIENCE_WITH_WRITING * PATIENCE)])
def test_limits_of_a_request_are_kept(method: str, patience: float) -> None:
    def limits_of(timeout: Any) -> Any:
        request = get_session().build_request(method, "http://127.0.0.1", timeout=timeout)
        _limit_wait(request)
        return request.extensions["timeout"]

    assert limits_of(3.0) == {"connect": 3.0, "read": 3.0, "write": 3.0, "pool": 3.0}
    assert limits_of(None) == {"connect": patience, "read": patience, "write": patience, "pool": None}


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    limit_waits()
    assert _limit_wait not in get_session().event_hooks["request"]
