"""What every adapter of `ports/event_bus.py` promises, and the bounds of the one in memory."""

import asyncio

import pytest

from contracts.event_buses import Bench, drain, kafka_bench, memory_bench
from internal_transfer.adapters.in_process.event_bus import MemoryEventBus
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Outcome, Side, Verdict
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.event_bus import EventBus


def verdict(transfer: int, reason: str = "") -> Verdict:
    account = Account(Owner("alice"), "spot", "USDT")
    return Verdict(TransferId(transfer), Side.TARGET, Action.APPLY, Outcome.APPLIED, reason, "USDT", 1, None, account)


@pytest.fixture(params=["memory", "kafka"])
async def bench(request):
    match request.param:
        case "memory":
            yield memory_bench()
        case "kafka":
            bench = await kafka_bench()
            yield bench
            await bench.close()


@pytest.fixture
def bus(bench: Bench) -> EventBus:
    return bench.bus


async def settle() -> None:
    """Lets the tasks that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_confirmations_come_once_and_in_order(bus):
    """Confirmations are handed out in the order of publishing, at most as many at a time as were asked for."""
    published = [verdict(1), verdict(2), verdict(1, "second"), verdict(3)]
    await bus.publish(published)
    seen = []
    while len(seen) < 4:
        delivery = await bus.take(3)
        assert 0 < len(delivery.verdicts) <= 3
        seen += delivery.verdicts
        await bus.acknowledge(delivery)
    assert seen == published


async def test_a_consumer_waits_for_the_first_confirmation(bus):
    """A consumer that comes first gets what is published later."""
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(bus.take(10))
        await settle()
        assert not taking.done()
        await bus.publish([verdict(1)])
    assert list(taking.result().verdicts) == [verdict(1)]


async def test_what_is_not_acknowledged_comes_again(bench):
    """After a restart of the consumers, unacknowledged deliveries come again, in order and before what is newer."""
    published = [verdict(1), verdict(2), verdict(3), verdict(1, "second")]
    await bench.bus.publish(published)
    done = await bench.bus.take(1)
    await bench.bus.take(1)
    await bench.bus.take(1)
    await bench.bus.acknowledge(done)
    await bench.restart()
    assert await drain(bench.bus, 3) == published[1:]


async def test_what_a_dead_consumer_had_in_hand_comes_again(bus):
    """When the task that took a delivery dies, another consumer gets it."""
    await bus.publish([verdict(1), verdict(2)])

    async def consume_and_die() -> None:
        await bus.take(10)
        raise ValueError("the consumer dies")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(consume_and_die())
    assert await drain(bus, 2) == [verdict(1), verdict(2)]


async def test_a_cancelled_consumer_loses_nothing(bus):
    """A cancelled consumer takes nothing with it: another one that waits gets what it would have got."""
    async with asyncio.TaskGroup() as group:
        impatient, patient = group.create_task(bus.take(10)), group.create_task(bus.take(10))
        await settle()
        await bus.publish([verdict(1)])
        impatient.cancel()
    assert list(patient.result().verdicts) == [verdict(1)]


async def test_one_transfer_is_in_one_consumers_hands(bus):
    """Later confirmations of a transfer wait until the earlier ones are acknowledged; other transfers do not wait."""
    await bus.publish([verdict(1, "a"), verdict(1, "b"), verdict(2)])
    first = await bus.take(1)
    other = await bus.take(10)
    assert list(other.verdicts) == [verdict(2)]
    await bus.publish([verdict(1, "c")])
    await bus.acknowledge(first)
    assert [each.reason for each in await drain(bus, 2)] == ["b", "c"]


async def test_order_per_transfer_survives_a_redelivery(bench):
    """Confirmations that waited for a delivery still come after it when it is handed out again."""
    await bench.bus.publish([verdict(1, "a"), verdict(1, "b"), verdict(2)])
    await bench.bus.take(1)
    await bench.bus.take(10)
    await bench.bus.publish([verdict(1, "c")])
    await bench.restart()
    again = await drain(bench.bus, 4)
    assert [each.reason for each in again if each.transfer_id == 1] == ["a", "b", "c"]
    assert verdict(2) in again


async def test_a_stale_acknowledgement_settles_nothing(bench):
    """Acknowledging a delivery that was handed out again meanwhile does not take it from the new consumer."""
    await bench.bus.publish([verdict(1)])
    stale = await bench.bus.take(1)
    await bench.restart()
    await bench.bus.acknowledge(stale)
    await bench.bus.acknowledge(stale)
    fresh = await bench.bus.take(1)
    assert list(fresh.verdicts) == [verdict(1)]
    await bench.restart()
    assert await drain(bench.bus, 1) == [verdict(1)]


async def test_a_full_bus_takes_all_or_nothing():
    """A batch that does not fit is `Unavailable` as a whole; acknowledging makes room, taking does not."""
    bus = MemoryEventBus(verdicts_max=8)
    await bus.publish([verdict(number) for number in range(7)])
    with pytest.raises(Unavailable) as failure:
        await bus.publish([verdict(8), verdict(9)])
    assert failure.value.system is System.BUS
    delivery = await bus.take(2)
    with pytest.raises(Unavailable):
        await bus.publish([verdict(8), verdict(9)])
    await bus.acknowledge(delivery)
    await bus.publish([verdict(8), verdict(9)])
    rest = await bus.take(10)
    assert [each.transfer_id for each in rest.verdicts] == [2, 3, 4, 5, 6, 8, 9]
