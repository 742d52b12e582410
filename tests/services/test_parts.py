"""The small parts that the roles are made of."""

import asyncio

import pytest

from internal_transfer.domain.leg import Leg, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.operations import AuditEntry
from internal_transfer.ports.transfer_store import OpenSummary
from internal_transfer.services.completions import Completions
from internal_transfer.services.intake import FEW, Intake
from internal_transfer.services.pressure import Pressure
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.faults import FailBefore
from services.parts import ports_of


async def test_an_intake_hands_out_all_that_waits_up_to_the_most():
    """A batch is all that waits; a longer queue is handed out in order, in several batches."""
    intake = Intake(5)
    assert [intake.offer(n) for n in range(7)] == [True] * 5 + [False] * 2
    assert len(intake) == 5
    assert await intake.take(3) == [0, 1, 2]
    assert await intake.take(3) == [3, 4]


async def test_of_many_that_wait_an_intake_hands_out_half():
    """The second half of a queue is worked on while the answers to the first half go out."""
    intake = Intake(100)
    for number in range(2 * FEW + 3):
        intake.offer(number)
    assert len(await intake.take(100)) == FEW + 2
    assert len(await intake.take(100)) == FEW
    assert len(await intake.take(100)) == 1


async def test_an_intake_wakes_who_waits_and_ends_when_closed_and_empty():
    """What was taken before the end is still handed out, and then nothing is."""
    intake = Intake(5)
    waiting = asyncio.ensure_future(intake.take(9))
    await SimulatedClock().settle()
    assert not waiting.done()
    intake.offer("a")
    assert await waiting == ["a"]
    intake.offer("b")
    intake.close()
    assert not intake.offer("c")
    assert await intake.take(9) == ["b"]
    assert await intake.take(9) == []
    assert await intake.take(9) == []


async def test_completions_wake_all_who_wait_for_a_transfer_and_no_others():
    """Who has gone, or has stopped waiting, is no trouble."""
    completions = Completions()
    completions.announce([1])
    first, second, gone, other = (completions.expect(n) for n in (1, 1, 1, 2))
    gone.cancel()
    completions.announce([1, 3])
    assert (first.done(), second.done(), other.done()) == (True, True, False)
    completions.forget(1, first)
    third, fourth = completions.expect(4), completions.expect(4)
    completions.forget(4, third)
    completions.forget(4, third)
    completions.announce([4])
    assert (third.done(), fourth.done()) == (False, True)
    completions.forget(2, other)
    assert not completions.waiting(1)


def pressure_of(clock, **asked):
    pressure = Pressure(ports_of(clock), open_most=3)
    pressure.refresh(OpenSummary({}, asked, {}, {}))
    return pressure


def test_pressure_counts_between_two_scans():
    """Accepted and finished transfers count at once; a scan's figures replace the count."""
    pressure = pressure_of(SimulatedClock())
    pressure.accepted(2)
    assert pressure.shed(()) is None
    assert pressure.shed((), 1).code is Code.SYSTEM_OVERLOADED
    pressure.accepted(1)
    assert pressure.shed(()).code is Code.SYSTEM_OVERLOADED
    pressure.finished(9)
    assert pressure.shed(()) is None
    pressure.refresh(OpenSummary({"PENDING": 3}, {}, {}, {}))
    assert pressure.shed(()).code is Code.SYSTEM_OVERLOADED


async def test_a_core_is_silent_when_it_owes_and_says_nothing():
    """Sixty seconds since it was asked and since it was heard; other cores are not meant."""
    clock = SimulatedClock()
    pressure = pressure_of(clock, alpha=clock.now_ms())
    await clock.advance(60)
    assert not pressure.is_silent("alpha")
    await clock.advance(1)
    assert pressure.is_silent("alpha")
    assert not pressure.is_silent("beta")
    legs = (Leg(Side.SOURCE, "beta"), Leg(Side.TARGET, "alpha"))
    assert pressure.shed(legs) is None
    assert pressure.shed(legs).code is Code.CORE_UNAVAILABLE
    assert pressure.shed(legs[:1]) is None
    pressure.heard("alpha")
    assert pressure.shed(legs) is None


async def test_a_policy_that_cannot_be_read_stays_as_it_was(start):
    """The last policy that was read is in force."""
    stack = await start()
    entry = AuditEntry(at=0, actor="a", action="stop", subject="all", reason="r", outcome="done")
    await stack.operations.change_policy(Policy(stopped=True), entry)
    stack.scripts[System.OPERATIONS].add("policy", FailBefore())
    with pytest.raises(Unavailable):
        await stack.policies.refresh()
    assert not stack.policies.current.stopped
    await stack.policies.refresh()
    assert stack.policies.current.stopped
