"""What the tests of every client share: a real server, and a user of one test alone."""

import itertools

import pytest

from e2e.lossy_proxy import LossyProxy
from e2e.server import Server

_users = (f"user-{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    """A server with the `SETTINGS` of the test module, if it has any."""
    server = Server(tmp_path_factory.mktemp("server"), getattr(request.module, "SETTINGS", ""))
    yield server
    assert server.stop() == 0


@pytest.fixture
def proxy(server):
    """A way to the server that can lose answers."""
    proxy = LossyProxy(server.port)
    yield proxy
    proxy.stop()


@pytest.fixture
def user(server):
    """A user of this test alone, with 100 USDT in the funding account."""
    user = next(_users)
    server.deposit(user, "100")
    return user
