"""What a failure leaves behind: nothing that the next work could trip over, and no answer that says too little."""

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.leg import Action, Outcome
from internal_transfer.domain.transfer import Decision, Need, Status
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.simulation.faults import FailBefore
from services.desks import ACTOR, Desks, cash


class InFront:
    """Stands for the core; what a subclass does not define is the core's own."""

    def __init__(self, core):
        self.core = core

    def __getattr__(self, name):
        return getattr(self.core, name)


class DeniesCancels(InFront):
    async def tell(self, commands):
        return [
            replace(verdict, outcome=Outcome.MISMATCH) if verdict and verdict.action is Action.CANCEL else verdict
            for verdict in await self.core.tell(commands)
        ]


class AlphaOverTheBus(InFront):
    """Core alpha confirms over the bus; core beta never says a word."""

    bus = None

    async def tell(self, commands):
        for command in commands:
            if command.core == "alpha":
                await self.bus.publish(await self.core.tell([command]))
        return [None] * len(commands)


def take_away(stack, table):
    stack.database.connection.execute(f"ALTER TABLE {table} RENAME TO taken_away")


def give_back(stack, table):
    stack.database.connection.execute(f"ALTER TABLE taken_away RENAME TO {table}")


async def test_a_failed_batch_does_not_fail_the_next(start):
    """After an error of the database the gateway answers replays and new requests as before."""
    stack = await start()
    known = await stack.accepted("known")
    for name in ("known", "new"):
        take_away(stack, "transfer_key")
        with pytest.raises(OperatingFailureError):
            await stack.submit("in between")
        give_back(stack, "transfer_key")
        answer = await stack.submit(name)
        assert answer.transfer.status is Status.SUCCESS
        assert answer.replayed == (answer.transfer.id == known.id)


async def test_a_failed_scan_does_not_fail_the_next(start):
    """After an error of the database the scanner's role goes on with what is due."""
    stack = await start()
    await stack.restart(scanning=True)
    stack.core.mode = CoreMode.PAUSED
    transfer = await stack.accepted("key")
    stack.core.mode = CoreMode.NORMAL
    take_away(stack, "transfer_event")
    await stack.pass_time(20)
    assert (await stack.transfer(transfer.id)).status is Status.PENDING
    give_back(stack, "transfer_event")
    await stack.pass_time(60)
    assert (await stack.transfer(transfer.id)).status is Status.SUCCESS


@pytest.mark.parametrize("each_call", [False, True])
async def test_g10_one_transfer_that_breaks_the_store_keeps_no_other_from_ending(start, each_call):
    """A row damaged by hand breaks every batch that it is in; the other transfers are still recovered."""
    stack = await start(each_call=each_call)
    await stack.deposit("bob", 100)
    stack.core.mode = CoreMode.PAUSED
    damaged = await stack.accepted("key")
    other = await stack.accepted("key", owner="bob")
    with stack.database.call() as connection:
        connection.execute("DELETE FROM daily_use WHERE owner = 'alice'")
    await stack.database.durable()
    stack.core.mode = CoreMode.REFUSE
    for _ in range(5):
        await stack.pass_time(300, step=100)
        await stack.scanner.scan()
    assert (await stack.transfer(other.id)).status is Status.FAILED
    assert (await stack.transfer(damaged.id)).status is Status.PENDING


async def test_a_core_is_heard_only_where_it_speaks_itself(start):
    """Core alpha's confirmations do not keep core beta, which is dead, from counting as silent."""
    front = []

    def in_front(core, _):
        front.append(AlphaOverTheBus(core))
        return front[-1]

    stack = await start(each_call=True, in_front_of_core=in_front)
    front[-1].bus = stack.bus
    await stack.accepted("in", "5", target="spot")
    await stack.pass_time(2)
    for number in range(12):
        await stack.submit(f"over {number}", "0.01", source="spot", target="futures")
        await stack.pass_time(10, step=5)
        await stack.scanner.scan()
    assert stack.service.pressure.is_silent("beta")
    assert not stack.service.pressure.is_silent("alpha")


async def test_a_deposit_whose_closing_entry_fails_is_not_called_undone(start):
    """The money is there when the audit chain cannot be written any more: the outcome is unknown, not nothing."""
    stack = await start(each_call=True, deposit=0)
    desks = Desks(stack)
    stack.scripts[System.OPERATIONS].add("append_audit", None, FailBefore())
    with pytest.raises(OutcomeUnknown):
        await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    assert await stack.posted("funding") == 1_00
    again = await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    assert again.outcome == "exists"


async def test_a_void_whose_closing_entry_fails_is_not_called_undone(start):
    """The same for an act on a transfer: what was decided stands."""
    stack = await start()
    desks = Desks(stack)
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("key")
    stack.scripts[System.OPERATIONS].add("append_audit", None, FailBefore())
    with pytest.raises(OutcomeUnknown):
        await desks.desk.void(transfer.id, reason="r", actor=ACTOR)
    assert (await stack.transfer(transfer.id)).status is Status.FAILED


async def test_a_void_that_the_core_contradicts_can_be_posted_by_breaking_the_glass(start):
    """Nobody can finish the void, so it is the one decision that may be turned round, if the glass is broken."""
    stack = await start(in_front_of_core=lambda core, _: DeniesCancels(core))
    desks = Desks(stack)
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("key")
    await desks.desk.void(transfer.id, reason="r", actor=ACTOR)
    stuck = await stack.transfer(transfer.id)
    assert (stuck.decision, stuck.needs_person) == (Decision.VOID, Need.CORE_CONTRADICTION)
    refused = await desks.desk.post(transfer.id, reason="r", actor=ACTOR)
    assert "decided to void" in refused.message
    done = await desks.desk.post(transfer.id, reason="r", actor=ACTOR, break_glass=True)
    assert (done.status, await stack.held()) == (Status.SUCCESS, 0)


async def test_the_end_of_every_transfer_is_logged_with_its_request_id(start):
    """Failures at info, success at debug: the log of a quiet day is short."""
    stack = await start()
    with capture_logs() as logged:
        done = await stack.accepted("key")
        failed = (await stack.submit("much", "5000")).transfer
    ends = [
        (line["log_level"], line["request_id"], line["code"]) for line in logged if line["event"] == "transfer_final"
    ]
    assert ends == [("debug", str(done.id), None), ("info", str(failed.id), "INSUFFICIENT_BALANCE")]


async def test_g10_a_clock_that_is_set_back_an_hour_keeps_nothing_waiting_for_an_hour(start):
    """Transfers that were put off are due far in the future of the new time, and are still taken up."""
    stack = await start()
    await stack.scanner.scan()
    stack.core.mode = CoreMode.PAUSED
    transfer = await stack.accepted("key")
    stack.clock.step_wall(-3_600_000)
    stack.core.mode = CoreMode.NORMAL
    await stack.pass_time(5)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.SUCCESS
