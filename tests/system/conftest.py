import tempfile
from pathlib import Path

import pytest

import real_servers
from internal_transfer.simulation.scenarios.catalogue import SCENARIOS, new_server, play_alone
from internal_transfer.simulation.scenarios.surroundings import StackKind


@pytest.fixture
def place():
    """An empty directory whose path is short enough for the operators' socket in it."""
    with tempfile.TemporaryDirectory(prefix="it-") as directory:
        yield Path(directory)


@pytest.fixture
async def server(place):
    """A server that was not started yet; what still runs of it after the test is killed."""
    async with new_server(place) as process:
        yield process


@pytest.fixture
def play(place):
    """Plays the catalogue's scenario of this function on a server of its own, to a clean reconciliation and stop."""

    async def run(function):
        [scenario] = [each for each in SCENARIOS if each.play is function]
        return await play_alone(scenario, place)

    return run


@pytest.fixture
def environment(monkeypatch):
    """Names the shared servers to the processes that scenarios start."""

    def name_servers(kind, **own):
        addresses = {"kafka": None, kind.value: None} | own
        for name in addresses:
            addresses[name] = addresses[name] or real_servers.need(name)
        monkeypatch.setenv("TIGERBEETLE_BINARY", "")
        monkeypatch.setenv("KAFKA_BOOTSTRAP", addresses["kafka"].bootstrap)
        if kind is StackKind.POSTGRESQL:
            monkeypatch.setenv("POSTGRESQL_DSN", addresses["postgresql"].dsn)
        else:
            monkeypatch.setenv("CASSANDRA_ADDRESS", f"{addresses['cassandra'].host}:{addresses['cassandra'].port}")

    return name_servers
