"""A Hub for the tests of this folder, and a process that meets it as the Hub: it imports everything only once."""

from collections.abc import Iterator

import pytest

from tests.hub.client import HubClient, hub_client
from tests.hub.server import HubServer, hub_server


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """The Hub."""
    with hub_server() as running:
        yield running


@pytest.fixture(scope="session")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """The process that talks to it."""
    with hub_client(hub.url, tmp_path_factory.mktemp("hub_cache")) as running:
        yield running


@pytest.fixture(scope="module")
def server(hub: HubServer) -> HubServer:
    """The Hub, empty at the beginning of a file."""
    hub.repositories.clear()
    hub.datasets.clear()
    hub.large_files.clear()
    return hub
