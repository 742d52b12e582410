"""Faults in front of ports, shown on the reference core."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.simulation.clock import SimulatedClock
from internal_transfer.simulation.faults import (
    ArriveLate,
    Delay,
    Duplicate,
    FailBefore,
    Fault,
    Faults,
    LoseAnswer,
    NeverAnswer,
    RandomFaults,
    ScriptedFaults,
)

ALICE = Owner("alice")
CREDIT = Command(
    TransferId(1), "main", Side.TARGET, Action.APPLY, "USDT", 100, None, Account(ALICE, "spot", "USDT")
)  # fmt: skip


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[ReferenceCore]:
    database = Database(tmp_path / "core.db")
    yield ReferenceCore(database)
    database.close()


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


async def applied(core: TradingCore) -> bool:
    """Tells whether the credit was made, asking past the faults."""
    return bool(await core.balances(ALICE))


def front(core: ReferenceCore, clock: SimulatedClock, *faults: Fault | None) -> tuple[Faults, TradingCore]:
    made = Faults(ScriptedFaults(tell=faults), clock, System.CORE)
    return made, made.wrap(core)


async def test_a_calm_call_is_the_ports_own(core, clock):
    """Without a fault, calls and plain attributes behave as the port's own."""
    _, port = front(core, clock, None)
    (verdict,) = await port.tell([CREDIT])
    assert verdict is not None
    assert verdict.outcome is Outcome.APPLIED
    assert port.mode is CoreMode.NORMAL
    with pytest.raises(AttributeError):
        _ = port.no_such_method


async def test_fail_before(core, clock):
    """The call raises `Unavailable` of the named system and has no effect; the next one goes through."""
    faults, port = front(core, clock, FailBefore())
    with pytest.raises(Unavailable) as failure:
        await port.tell([CREDIT])
    assert failure.value.system is System.CORE
    assert not await applied(core)
    await port.tell([CREDIT])
    assert await applied(core)
    assert faults.counts == {FailBefore: 1}


async def test_lose_answer(core, clock):
    """The call raises `OutcomeUnknown` and has its effect; asking again by id gives the verdict."""
    _, port = front(core, clock, LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await port.tell([CREDIT])
    assert await applied(core)
    (verdict,) = await port.tell([CREDIT])
    assert verdict is not None
    assert verdict.outcome is Outcome.APPLIED


async def test_delay(core, clock):
    """The effect comes after the first wait and the answer after the second, both on the clock."""
    _, port = front(core, clock, Delay(before_seconds=2.0, after_seconds=3.0))
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(port.tell([CREDIT]))
        await clock.advance(1.9)
        assert not await applied(core)
        await clock.advance(0.2)
        assert await applied(core)
        assert not telling.done()
        await clock.advance(3.0)
        assert telling.done()


async def test_never_answer_until_released(core, clock):
    """The effect is there, the answer comes only when it is released."""
    faults, port = front(core, clock, NeverAnswer())
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(port.tell([CREDIT]))
        await clock.advance(3_600.0)
        assert await applied(core)
        assert not telling.done()
        faults.released.set()
    assert telling.result()[0] is not None


async def test_a_late_arrival_loses_to_a_cancel(core, clock):
    """A call whose sender has given up arrives later, and then finds what was done meanwhile."""
    faults, port = front(core, clock, ArriveLate())
    with pytest.raises(OutcomeUnknown):
        await port.tell([CREDIT])
    cancel = Command(TransferId(1), "main", Side.TARGET, Action.CANCEL, "USDT", 100, None, CREDIT.credit)
    await port.tell([cancel])
    assert await faults.deliver_late() == 1
    assert not await applied(core)
    assert await faults.deliver_late() == 0


async def test_a_late_arrival_takes_effect(core, clock):
    """A late call takes effect when it arrives, if nothing else happened before."""
    faults, port = front(core, clock, ArriveLate())
    with pytest.raises(OutcomeUnknown):
        await port.tell([CREDIT])
    assert not await applied(core)
    await faults.deliver_late()
    assert await applied(core)


async def test_a_late_failure_reaches_nobody(core, clock):
    """The failure of a late call reaches nobody, and does not stop those behind it."""
    faults, port = front(core, clock, ArriveLate(), ArriveLate())
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await port.tell([CREDIT])
    core.mode = CoreMode.PAUSED
    assert await faults.deliver_late() == 2
    core.mode = CoreMode.NORMAL
    assert not await applied(core)


async def test_duplicate(core, clock):
    """The call is made twice, and has one effect, as the port promises."""
    faults, port = front(core, clock, Duplicate())
    (verdict,) = await port.tell([CREDIT])
    assert verdict is not None
    (balance,) = await core.balances(ALICE)
    assert balance.posted == 100
    assert faults.counts == {Duplicate: 1}


async def test_scripts_are_by_method_and_can_grow(core, clock):
    """A list of faults applies to its method alone, in order, and can be extended while it is used."""
    plan = ScriptedFaults(tell=[None, FailBefore()])
    port = Faults(plan, clock, System.CORE).wrap(core)
    assert await port.balances(ALICE) == []
    await port.tell([CREDIT])
    with pytest.raises(Unavailable):
        await port.tell([CREDIT])
    await port.tell([CREDIT])
    plan.add("balances", FailBefore())
    with pytest.raises(Unavailable):
        await port.balances(ALICE)
    assert len(await port.balances(ALICE)) == 1


def drawn(seed: int, **changes: object) -> list[Fault | None]:
    plan = RandomFaults(seed=seed, probability=0.5, weights={FailBefore(): 1.0, LoseAnswer(): 3.0}, **changes)
    return [plan.next_fault("tell") for _ in range(400)]


def test_random_faults_repeat_with_their_seed():
    """The same seed gives the same faults, another seed others, with about the given probability and weights."""
    faults = drawn(1)
    assert faults == drawn(1)
    assert faults != drawn(2)
    failed, lost = faults.count(FailBefore()), faults.count(LoseAnswer())
    assert 150 < failed + lost < 250
    assert lost > failed > 0


def test_random_faults_can_be_spared_and_stopped():
    """A spared method never fails, and after `stop` none does."""
    assert set(drawn(1, spared=frozenset({"tell"}))) == {None}
    plan = RandomFaults(seed=1, probability=1.0, weights={FailBefore(): 1.0})
    assert plan.next_fault("tell") == FailBefore()
    plan.stop()
    assert plan.next_fault("tell") is None


async def test_faults_can_be_stacked(core, clock):
    """A port with faults is a port, so other faults can stand in front of it."""
    _, inner = front(core, clock, LoseAnswer())
    outer = Faults(ScriptedFaults(tell=[Duplicate()]), clock, System.CORE).wrap(inner)
    with pytest.raises(OutcomeUnknown):
        await outer.tell([CREDIT])
    (verdict,) = await outer.tell([CREDIT])
    assert verdict is not None
    assert await applied(core)
