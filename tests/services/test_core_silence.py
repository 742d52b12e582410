"""When a core counts as silent in a process that accepts, while another one hears what cores answer."""

import asyncio

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import System
from internal_transfer.ports.transfer_store import OpenSummary
from internal_transfer.services.pressure import COMMANDS_KEPT, Pressure
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.faults import FailBefore
from services.fronts import Moods
from services.parts import ports_of
from services.stack import request


class AcceptingProcess:
    """A second process on the stack's record: it accepts and follows, and what cores answer goes to the first."""

    def __init__(self, stack):
        service = stack.build()
        self.gateway, self.follower, self.pressure = service.gateway, service.follower, service.pressure

    async def submit(self, key, **places):
        """Asks this process for a transfer to a core."""
        return await self.gateway.submit(request(key, **places), wait_seconds=0)


@pytest.fixture
async def two(start):
    """A process that settles, one that accepts, and a core between them, which answers when `answer` is called."""
    moods = Moods()
    moods.silent = {"alpha"}
    stack = await start(in_front_of_core=moods)
    accepting = AcceptingProcess(stack)
    tasks = [asyncio.ensure_future(accepting.gateway.run()), asyncio.ensure_future(accepting.follower.run())]
    await stack.clock.settle()
    yield stack, accepting, moods
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def answer(stack, moods):
    """The settling process hears the core's verdicts on all commands since."""
    said, moods.said = moods.said, []
    await stack.settler.settle([verdict for verdict in said if verdict is not None])


async def test_one_lost_answer_does_not_close_a_route_that_others_go_through(two):
    """One command gets no answer for three minutes, others are answered through another process: none is shed.

    The last part has orders only every 25 seconds, so that no single look sees one that was just answered.
    """
    stack, accepting, moods = two
    lost = await accepting.submit("lost")
    moods.said.clear()
    for apart in [1] * 100 + [25] * 4:
        key = f"at {stack.clock.now_ms()}"
        assert (await accepting.submit(key)).refusal is None
        await answer(stack, moods)
        await stack.pass_time(apart)
        assert not accepting.pressure.is_silent("alpha")
        assert (await accepting.submit(key)).transfer.status is Status.SUCCESS
    assert (await stack.transfer(lost.transfer.id)).status is Status.PENDING


async def test_a_core_that_falls_silent_is_shed_and_let_in_again(two):
    """A core that no longer answers is silent after a minute, whatever it answered before; when it
    answers a probe through another process, the routes are open again with the next look at the record.
    """
    stack, accepting, moods = two
    for number in range(50):
        await accepting.submit(f"answered {number}")
        await answer(stack, moods)
        await stack.pass_time(1)
    for number in range(70):
        await accepting.submit(f"owed {number}")
        await stack.pass_time(1)
    await stack.pass_time(5)
    probe, shed = await accepting.submit("probe"), await accepting.submit("shed")
    assert probe.refusal is None
    assert shed.refusal.code is Code.CORE_UNAVAILABLE
    assert shed.transfer is None
    await stack.pass_time(20)
    assert accepting.pressure.is_silent("alpha"), "looking at the record alone makes no core answer"
    moods.said.clear()
    back = await accepting.submit("back")
    assert back.refusal is None
    await answer(stack, moods)
    await stack.pass_time(6)
    assert not accepting.pressure.is_silent("alpha")
    assert (await stack.transfer(back.transfer.id)).status is Status.SUCCESS
    assert [(await accepting.submit(f"open {number}")).refusal for number in range(3)] == [None] * 3


async def test_the_record_is_looked_at_only_where_a_core_is_in_question(two):
    """While nothing is owed for long nobody reads a record for it; a look that fails is made again."""
    stack, accepting, moods = two
    stack.scripts[System.STORE].add("get", FailBefore())
    moods.silent.clear()
    await accepting.submit("answered at once")
    await stack.pass_time(60)
    assert accepting.pressure.in_question() == []
    assert stack.telemetry.failures.labels("store", "Unavailable")._value.get() == 0
    moods.silent.add("alpha")
    moods.modes["alpha"] = CoreMode.WITHHOLD
    await accepting.submit("owed")
    await stack.pass_time(45)
    assert stack.telemetry.failures.labels("store", "Unavailable")._value.get() == 1


def owing(clock):
    """A process that knows that a core has owed an answer since soon after it began, and has not heard the core."""
    pressure = Pressure(ports_of(clock), open_most=9)
    pressure.refresh(OpenSummary({}, {"alpha": clock.now_ms()}, {}, {}))
    return pressure


async def test_only_an_answer_counts_and_only_from_when_the_command_was_sent(start):
    """A leg still in the state in which its core was told says nothing, nor does another leg's answer, nor a missing
    transfer. The answer counts from the time of the command, since nobody knows when it came; later commands count.
    """
    stack = await start()
    transfer = await stack.accepted("key")
    clock = SimulatedClock()
    asked = Leg(Side.TARGET, "alpha", LegState.ASKED)
    for leg in (Leg(Side.TARGET, "alpha", LegState.APPLIED), Leg(Side.SOURCE, "alpha", LegState.ASKED)):
        pressure = owing(clock)
        await clock.advance(61)
        pressure.told(transfer.id, leg)
        pressure.seen([transfer])
        assert pressure.is_silent("alpha")
    pressure = owing(clock)
    await clock.advance(61)
    pressure.told(transfer.id, asked)
    assert pressure.in_question() == [transfer.id]
    pressure.seen([None])
    assert pressure.is_silent("alpha")
    pressure.seen([transfer])
    assert not pressure.is_silent("alpha")
    await clock.advance(600)
    assert not pressure.is_silent("alpha"), "it has answered the last that it was asked here"
    pressure.told(transfer.id, replace(asked, state=LegState.APPLIED))
    await clock.advance(60)
    assert not pressure.is_silent("alpha")
    await clock.advance(1)
    pressure.seen([transfer])
    assert pressure.is_silent("alpha")


async def test_a_process_that_begins_beside_an_old_debt_takes_no_core_for_silent(start):
    """Commands from before it began tell a process nothing, however long it is idle; its own commands
    do, and those that the record names as asked since.
    """
    stack = await start()
    transfer = await stack.accepted("key")
    clock = SimulatedClock()
    pressure = Pressure(ports_of(clock), open_most=9)
    pressure.refresh(OpenSummary({}, {"alpha": clock.now_ms() - 100_000}, {}, {}))
    await clock.advance(600)
    assert not pressure.is_silent("alpha")
    pressure.told(transfer.id, Leg(Side.TARGET, "alpha", LegState.APPLIED))
    await clock.advance(61)
    assert pressure.is_silent("alpha")
    pressure.heard("alpha")
    assert not pressure.is_silent("alpha")
    pressure.refresh(OpenSummary({}, {"alpha": clock.now_ms() + 1}, {}, {}))
    await clock.advance(62)
    assert pressure.is_silent("alpha")


async def test_few_commands_are_kept_and_they_reach_back_to_when_a_core_is_silent():
    """Of a thousand commands in two minutes few are remembered, spread over the last minute of them."""
    clock = SimulatedClock()
    pressure = owing(clock)
    for number in range(1_000):
        pressure.told(TransferId(number), Leg(Side.TARGET, "alpha", LegState.ASKED))
        await clock.advance(0.12)
    sent_seconds = [transfer_id * 0.12 for transfer_id in pressure.in_question()]
    assert len(sent_seconds) == COMMANDS_KEPT
    assert sent_seconds[0] <= 120 - 55
    assert sent_seconds[-1] >= 120 - 5
