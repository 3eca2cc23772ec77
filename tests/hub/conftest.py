"""A Hub for the tests of one file, and a process that meets it as the Hub."""

from collections.abc import Iterator

import pytest

from tests.hub.client import HubClient, hub_client
from tests.hub.server import HubServer, hub_server


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """The Hub."""
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """The process that talks to it."""
    with hub_client(server.url, tmp_path_factory.mktemp("hub_cache")) as running:
        yield running
