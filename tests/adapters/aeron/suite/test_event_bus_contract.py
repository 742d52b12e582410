"""The contract of `ports/event_bus.py`, kept by the bus over Aeron.

The tests are those of `contracts/test_event_bus.py` that need nothing but a bus.
"""

import inspect
from collections.abc import AsyncIterator, Sequence

import pytest

from adapters.aeron.suite.machine import until
from contracts import test_event_bus as contract
from contracts.event_buses import Bench
from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.event_bus import AeronEventBus
from internal_transfer.domain.leg import Verdict

for _name, _test in list(vars(contract).items()):
    if _name.startswith("test_") and {"bus", "bench"} & set(inspect.signature(_test).parameters):
        globals()[_name] = _test
del _name, _test


class _Heard(AeronEventBus):
    """A bus whose `publish` returns when the bus has heard its own messages, so that a test knows what it can take."""

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        due = self.owed + len(verdicts)
        await super().publish(verdicts)
        await until(lambda: self.owed == due)


@pytest.fixture
async def bench(connection, clock) -> AsyncIterator[Bench]:
    client = AeronClient(connection, clock=clock)
    bus = _Heard(client, sends=True)

    async def again() -> AeronEventBus:
        bus.redeliver()
        return bus

    await client.start()
    await until(lambda: bus.failure is None)
    yield Bench(bus, again, client.close)
    await client.close()


@pytest.fixture
def bus(bench) -> AeronEventBus:
    return bench.bus


def test_the_contract_is_not_empty():
    """The contract's tests were found: an empty suite would show nothing."""
    assert sum(name.startswith("test_") for name in globals()) > 7
