"""Fixtures of the tests of Aeron."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from servers import place

from adapters.aeron.suite.machine import Core, MediaDriver, Service
from internal_transfer.adapters.aeron.settings import AeronConnection
from internal_transfer.adapters.system.clock import SystemClock

_streams = itertools.count(1000, 10)


@pytest.fixture(scope="session")
def shared_driver() -> Iterator[MediaDriver]:
    driver = MediaDriver("shared")
    # What a killed client had is in the others' way for so long; ten seconds are Aeron's default.
    driver.start(AERON_CLIENT_LIVENESS_TIMEOUT="4s")
    yield driver
    driver.remove()


@pytest.fixture
def own_driver() -> Iterator[MediaDriver]:
    driver = MediaDriver("own")
    yield driver
    driver.remove()


@pytest.fixture(params=["ipc", "udp"])
def connection(request, shared_driver) -> AeronConnection:
    """Streams that no other test uses, over shared memory and over UDP on loopback."""
    if request.param == "udp":
        commands, verdicts = place.free_ports(2)
        return AeronConnection(
            directory=shared_driver.directory,
            commands=f"aeron:udp?endpoint=127.0.0.1:{commands}",
            verdicts=f"aeron:udp?control=127.0.0.1:{verdicts}|control-mode=dynamic",
            heard_on=f"aeron:udp?endpoint=127.0.0.1:0|control=127.0.0.1:{verdicts}|control-mode=dynamic",
            first_stream=next(_streams),
        )
    return AeronConnection(directory=shared_driver.directory, first_stream=next(_streams))


@pytest.fixture
def clock() -> SystemClock:
    clock = SystemClock()
    clock.lease(1, clock.monotonic() + 3600)
    return clock


@pytest.fixture
async def pair(connection, clock, tmp_path) -> AsyncIterator[tuple[Service, Core]]:
    """A service and a core that are connected."""
    async with AsyncExitStack() as stack:
        core = Core(connection, clock, tmp_path / "core.db")
        await stack.enter_async_context(core.running())
        service = await stack.enter_async_context(Service(connection, clock))
        await service.connected()
        yield service, core
