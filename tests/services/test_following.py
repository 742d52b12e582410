"""A process that shares its record with others: what it sees of their work, and how many look with one look."""

import asyncio

import pytest

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.operations import AuditEntry
from internal_transfer.services.reading import RecordReader
from internal_transfer.simulation.faults import FailBefore
from services.parts import ports_of


class Elsewhere:
    """Another process on the stack's record, in which nobody finishes anything."""

    def __init__(self, stack, *, open_most=10_000):
        service = stack.build(open_most=open_most)
        self.completions, self.policies = service.completions, service.policies
        self.pressure, self.follower = service.pressure, service.follower


@pytest.fixture
async def follow(start):
    """Starts a service and another process that follows it."""
    tasks = []

    async def follow_one(**settings):
        stack = await start()
        elsewhere = Elsewhere(stack, **settings)
        tasks.append(asyncio.ensure_future(elsewhere.follower.run()))
        await stack.clock.settle()
        return stack, elsewhere

    yield follow_one
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def finished_later(stack, elsewhere):
    """A caller in another process waits for a transfer, which is then finished here."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("key")
    done = elsewhere.completions.expect(transfer.id)
    await stack.pass_time(1)
    assert not done.done()
    stack.core.mode = CoreMode.NORMAL
    await stack.scan_until_quiet()
    return done


async def test_who_waits_learns_of_what_another_process_finished(follow):
    """A caller that waits sees the end of a transfer in the record."""
    stack, elsewhere = await follow()
    done = await finished_later(stack, elsewhere)
    await stack.pass_time(0.1)
    assert done.done()
    assert elsewhere.completions.waiting(10) == []


async def test_a_look_that_fails_is_made_again(follow):
    """A store that is away for a moment keeps nobody from learning of it; the failure is counted."""
    stack, elsewhere = await follow()
    stack.scripts[System.STORE].add("get", FailBefore())
    done = await finished_later(stack, elsewhere)
    await stack.pass_time(3)
    assert done.done()
    assert stack.telemetry.failures.labels("store", "Unavailable")._value.get() == 1


async def test_looking_when_nobody_waits_asks_nothing(follow):
    """Who has given up meanwhile is not looked for."""
    stack, elsewhere = await follow()
    stack.scripts[System.STORE].add("get", FailBefore())
    await elsewhere.follower.look()
    with pytest.raises(Unavailable):
        await stack.faults[System.STORE].wrap(stack.store).get([])


async def test_a_policy_that_is_changed_elsewhere_holds_here_soon(follow):
    """A stop that an operator gave to another process counts within seconds, also past a failure."""
    stack, elsewhere = await follow()
    entry = AuditEntry(at=1, actor="op", action="stop", subject="all", reason="r", outcome="completed")
    await stack.operations.change_policy(Policy(stopped=True), entry)
    await stack.database.durable()
    stack.scripts[System.OPERATIONS].add("policy", FailBefore())
    assert not elsewhere.policies.current.stopped
    await stack.pass_time(3)
    assert elsewhere.policies.current.stopped


async def test_open_transfers_of_other_processes_count_here(follow):
    """The bound on open transfers holds for all processes together, also past a failure."""
    stack, elsewhere = await follow(open_most=2)
    stack.core.mode = CoreMode.WITHHOLD
    await asyncio.gather(stack.accepted("1"), stack.accepted("2"))
    stack.scripts[System.STORE].add("open_summary", FailBefore())
    assert elsewhere.pressure.shed(()) is None
    await stack.pass_time(12)
    assert elsewhere.pressure.shed(()) is not None


async def test_many_who_read_records_share_a_look(start):
    """Each gets the transfer and events asked for; who gave up is no trouble, and a failure is told to all."""
    stack = await start()
    transfers = [await stack.accepted(str(number)) for number in range(3)]
    store = stack.faults[System.STORE].wrap(stack.store)
    reader = RecordReader(ports_of(stack.clock, store=store, durability=stack.database), most=4)
    stack.scripts[System.STORE].add("get", FailBefore())
    asked = [asyncio.ensure_future(reader.read(transfer.id)) for transfer in [*transfers, transfers[0], transfers[1]]]
    await stack.clock.settle()
    asked[1].cancel()
    running = asyncio.ensure_future(reader.run())
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in failed] == [
        Unavailable,
        asyncio.CancelledError,
        Unavailable,
        Unavailable,
        Unavailable,
    ]
    assert "too many" in str(failed[4])
    asked = [asyncio.ensure_future(reader.read(transfer.id)) for transfer in transfers]
    await asyncio.sleep(0)
    asked[1].cancel()
    first, _, third = await asyncio.gather(*asked, return_exceptions=True)
    assert (first[0], len(first[1]), third[0]) == (transfers[0], 3, transfers[2])
    reader.close()
    await running
