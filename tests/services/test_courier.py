"""The courier: every event of the feed is published, in order per transfer, whatever fails meanwhile."""

import asyncio
from collections.abc import Sequence

import pytest

from contracts.transfer_stores import open_embedded
from internal_transfer.conformance.transfer_store.transfers import proposal, step, transfer
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.event_publisher import EventPublisher, TransferEvent
from internal_transfer.services.courier import READER, Courier, CourierBounds
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.faults import FailBefore, Faults, LoseAnswer, ScriptedFaults
from internal_transfer.telemetry import Telemetry
from internal_transfer.wiring.bounded import Bound
from services.parts import ports_of


class Journal:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.has_bug = False
        self.events: list[TransferEvent] = []

    async def publish(self, events: Sequence[TransferEvent]) -> None:
        assert not self.has_bug, "a bug"
        self.events += events

    @property
    def told(self) -> list[tuple[int, Status]]:
        return [(each.event.version, each.event.status) for each in self.events]


class World:
    """A store with transfers, and couriers on it."""

    def __init__(self, store) -> None:
        self.store = store
        self.clock = SimulatedClock()
        self.journal = Journal()
        self.bus, self.storage = ScriptedFaults(), ScriptedFaults()
        self.telemetry = Telemetry()

    def courier(self, *, batch_most: int = 512) -> Courier:
        ports = ports_of(
            self.clock,
            store=Faults(self.storage, self.clock, System.STORE).wrap(self.store.store),
            durability=self.store.database,
            telemetry=self.telemetry,
        )
        publisher = Faults(self.bus, self.clock, System.BUS).wrap(self.journal)
        bound = Bound(System.BUS, 10.0, self.clock, self.telemetry)
        return Courier(ports, bound.around(publisher, EventPublisher), CourierBounds(batch_most=batch_most))

    async def settle(self, number: int, last: Status) -> None:
        """Accepts a transfer and takes it to its end."""
        store = self.store.store
        await store.accept([proposal(transfer(number))])
        [recorded] = await store.get([transfer(number).id])
        [pending] = await store.record([step(recorded, Status.PENDING)])
        failure = Code.CORE_REFUSED if last is Status.FAILED else None
        await store.record([step(pending, last, failure=failure)])
        await self.store.database.durable()


@pytest.fixture
async def world(tmp_path):
    store = await open_embedded("embedded-shared", tmp_path)
    yield World(store)
    await store.close()


SUCCEEDED = [(1, Status.REQUESTING), (2, Status.PENDING), (3, Status.SUCCESS)]
FAILED = [(1, Status.REQUESTING), (2, Status.PENDING), (3, Status.FAILED)]


async def test_every_event_is_published_once(world):
    """All events are published with their transfers, in the order of the feed; then nothing is left to publish."""
    await world.settle(1, Status.SUCCESS)
    await world.settle(2, Status.FAILED)
    courier = world.courier()
    assert await courier.publish_next() == 6
    assert await courier.publish_next() == 0
    assert world.journal.told == SUCCEEDED + FAILED
    assert {each.transfer.id for each in world.journal.events} == {transfer(1).id, transfer(2).id}
    assert all(each.transfer.id == each.event.transfer_id for each in world.journal.events)
    assert world.journal.events[-1].event.code is Code.CORE_REFUSED


async def test_a_successor_goes_on_where_the_last_one_was(world):
    """A new courier begins behind what was published and noted, page by page."""
    await world.settle(1, Status.SUCCESS)
    assert await world.courier(batch_most=2).publish_next() == 2
    assert await world.courier(batch_most=2).publish_next() == 1
    assert world.journal.told == SUCCEEDED


@pytest.mark.parametrize(
    ("fault", "told"), [(FailBefore(), SUCCEEDED), (LoseAnswer(), SUCCEEDED * 2)], ids=["away", "answer lost"]
)
async def test_what_was_not_confirmed_is_published_again(world, fault, told):
    """After a failure all of a page comes again: nothing is left out, and what may have come comes twice."""
    await world.settle(1, Status.SUCCESS)
    courier = world.courier()
    world.bus.add("publish", fault)
    with pytest.raises((Unavailable, OutcomeUnknown)):
        await courier.publish_next()
    assert await courier.publish_next() == 3
    assert world.journal.told == told


async def test_a_position_that_was_not_noted(world):
    """Where the note of the position fails, the page is published again and the position is right in the end."""
    await world.settle(1, Status.SUCCESS)
    courier = world.courier()
    world.storage.add("move_reader", FailBefore())
    with pytest.raises(Unavailable):
        await courier.publish_next()
    await courier.publish_next()
    assert world.journal.told == SUCCEEDED * 2
    (*_, (last, _)) = await world.store.store.feed(0, 10)
    assert await world.store.store.reader_position(READER) == last


async def test_it_goes_on_by_itself(world):
    """While it runs, failures are counted and waited out, and events that come later are published."""
    world.bus.add("publish", FailBefore(), LoseAnswer())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.courier().run())
        await world.settle(1, Status.SUCCESS)
        await world.clock.advance(5.0)
        assert world.journal.told == SUCCEEDED * 2
        await world.settle(2, Status.FAILED)
        await world.clock.advance(5.0)
        assert world.journal.told == SUCCEEDED * 2 + FAILED
        running.cancel()
    counted = world.telemetry.failures
    assert counted.labels(System.BUS, "Unavailable")._value.get() == 1
    assert counted.labels(System.BUS, "OutcomeUnknown")._value.get() == 1


async def test_full_pages_follow_each_other_without_a_pause(world):
    """Three events in pages of one are published before the clock has moved; a page that is not full waits for more."""
    await world.settle(1, Status.SUCCESS)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.courier(batch_most=1).run())
        await world.clock.advance(0.0)
        assert world.journal.told == SUCCEEDED
        running.cancel()


async def test_a_bug_does_not_end_it(world):
    """What shows a bug is counted, and the courier goes on."""
    world.journal.has_bug = True
    await world.settle(1, Status.SUCCESS)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.courier().run())
        await world.clock.advance(3.0)
        world.journal.has_bug = False
        await world.clock.advance(3.0)
        running.cancel()
    assert world.journal.told == SUCCEEDED
    assert world.telemetry.failures.labels("courier", "AssertionError")._value.get() >= 1
