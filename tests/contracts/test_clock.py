"""What every adapter of `ports/clock.py` promises, and how the simulated one moves."""

import asyncio
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_transfer.adapters.system.clock import IdSequence, SystemClock
from internal_transfer.domain.identifier import PER_MILLISECOND_MAX, time_of
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.simulation.clock import START_MS, SimulatedClock


class Hands:
    """Wall and monotonic time as a test sets them."""

    def __init__(self) -> None:
        self.wall_ms = START_MS
        self.monotonic_seconds = 0.0

    def sequence(self, node: int = 7) -> IdSequence:
        """An id sequence on this time, with a lease for ever."""
        sequence = IdSequence(lambda: self.wall_ms, lambda: self.monotonic_seconds)
        sequence.lease(node, inf)
        return sequence


@pytest.fixture(params=["system", "simulated"])
def clock(request) -> SystemClock | SimulatedClock:
    clock = SystemClock() if request.param == "system" else SimulatedClock(seed=1)
    clock.lease(3, inf)
    return clock


def test_ids_rise_and_carry_time_and_node(clock):
    """Ids rise within and across draws, carry the leased node, and their time is that of the wall clock."""
    before = clock.now_ms()
    ids = [*clock.new_ids(3), *clock.new_ids(1), *clock.new_ids(0), *clock.new_ids(2)]
    assert ids == sorted(set(ids))
    assert len(ids) == 6
    assert {each >> 12 & 1023 for each in ids} == {3}
    assert all(before <= time_of(each) <= clock.now_ms() for each in ids)


def test_jitter_is_in_its_range(clock):
    """Jitter is at least 0 and below 1, and not always the same."""
    drawn = [clock.jitter() for _ in range(100)]
    assert all(0.0 <= each < 1.0 for each in drawn)
    assert len(set(drawn)) > 1


def test_monotonic_time_does_not_fall(clock):
    """The monotonic clock never goes back."""
    seen = [clock.monotonic() for _ in range(10)]
    assert seen == sorted(seen)


async def test_a_sleep_of_nothing_returns(clock):
    """Sleeping for no time returns."""
    await clock.sleep(0.0)


def test_no_ids_after_the_lease(clock):
    """When the lease of the node has run out no id is drawn, and once it is renewed ids are drawn again."""
    clock.lease(3, clock.monotonic())
    with pytest.raises(Unavailable) as failure:
        clock.new_ids(1)
    assert failure.value.system is System.STORE
    clock.lease(3, clock.monotonic() + 3_600.0)
    assert len(clock.new_ids(1)) == 1


def test_no_ids_without_a_lease():
    """A new clock draws no ids before a node is leased to it."""
    with pytest.raises(Unavailable):
        SystemClock().new_ids(1)


async def test_the_machines_clock_sleeps_by_the_loop():
    """The system clock's sleep ends, and not before its time on the monotonic clock."""
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.002)
    assert clock.monotonic() - before >= 0.001


def test_system_time_is_the_sources():
    """Wall time is in whole milliseconds since 1970, monotonic time as the source gives it."""
    clock = SystemClock(wall_ns=lambda: 1_999_999, monotonic=lambda: 2.5)
    assert (clock.now_ms(), clock.monotonic()) == (1, 2.5)


def test_small_steps_back_are_bridged():
    """After the wall clock stepped back by 5 s, ids go on rising from the last one's time."""
    hands = Hands()
    sequence = hands.sequence()
    (before,) = sequence.draw(1)
    hands.wall_ms -= 5_000
    after = sequence.draw(2)
    assert before < after[0] < after[1]
    assert time_of(after[1]) == START_MS


def test_large_steps_back_stop_ids_until_time_caught_up():
    """After a larger step there are no ids until the clock is within 5 s of the last one, and then they still rise."""
    hands = Hands()
    sequence = hands.sequence()
    (before,) = sequence.draw(1)
    hands.wall_ms -= 60_000
    for _ in range(3):
        with pytest.raises(Unavailable):
            sequence.draw(1)
    hands.wall_ms += 55_000
    (after,) = sequence.draw(1)
    assert before < after


def test_a_used_up_millisecond_runs_into_the_next():
    """More ids than fit in a millisecond take the times that follow, without a gap and without a repetition."""
    sequence = Hands().sequence()
    ids = sequence.draw(PER_MILLISECOND_MAX + 1) + sequence.draw(2 * PER_MILLISECOND_MAX)
    assert ids == sorted(set(ids))
    assert [time_of(ids[place]) - START_MS for place in (0, PER_MILLISECOND_MAX - 1, PER_MILLISECOND_MAX, -1)] == [
        0,
        0,
        1,
        3,
    ]


def test_running_ahead_is_bounded():
    """Ids never run more than 5 s ahead of the wall clock; a draw that would is refused whole and costs nothing."""
    hands = Hands()
    sequence = hands.sequence()
    whole = sequence.draw(PER_MILLISECOND_MAX * 5_001)
    assert time_of(whole[-1]) == START_MS + 5_000
    with pytest.raises(Unavailable):
        sequence.draw(1)
    hands.wall_ms += 1
    assert sequence.draw(1)[0] > whole[-1]


def test_another_node_keeps_ids_rising():
    """A smaller node, leased after the first was lost, still gives larger ids."""
    hands = Hands()
    sequence = hands.sequence(node=900)
    (before,) = sequence.draw(1)
    sequence.lease(2, inf)
    assert sequence.draw(1)[0] > before


def test_a_clock_before_the_ids_epoch_gives_no_ids():
    """A machine whose clock is years behind gets `Unavailable` and not ids that collide later."""
    hands = Hands()
    hands.wall_ms = 0
    with pytest.raises(Unavailable):
        hands.sequence().draw(1)


@given(moves=st.lists(st.tuples(st.integers(-8_000, 8_000), st.integers(1, 9_000)), max_size=12))
def test_ids_rise_whatever_the_clock_does(moves):
    """Whatever steps the wall clock makes, all ids that are drawn rise and are at most 5 s ahead."""
    hands = Hands()
    sequence = hands.sequence()
    last = 0
    for step, count in moves:
        hands.wall_ms += step
        try:
            ids = sequence.draw(count)
        except Unavailable:
            continue
        assert len(ids) == count
        assert [last, *ids] == sorted({last, *ids})
        assert time_of(ids[-1]) <= hands.wall_ms + 5_000
        last = ids[-1]


# What follows is about the simulated clock itself.


async def test_sleepers_wake_in_order_at_their_own_time():
    """Advancing wakes sleepers by time and then by call, each seeing its own time, also one that sleeps again."""
    clock = SimulatedClock()
    woken: list[tuple[str, float]] = []

    async def nap(name: str, *naps: float) -> None:
        for seconds in naps:
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(nap("slow", 3.0))
        group.create_task(nap("twice", 1.0, 1.5))
        group.create_task(nap("same", 3.0))
        group.create_task(nap("late", 10.0))
        await clock.advance(5.0)
        assert woken == [("twice", 1.0), ("twice", 2.5), ("slow", 3.0), ("same", 3.0)]
        assert clock.monotonic() == 5.0
        assert clock.now_ms() == START_MS + 5_000
        assert clock.next_wake_seconds() == 5.0
        await clock.advance(5.0)
    assert woken[-1] == ("late", 10.0)
    assert clock.next_wake_seconds() is None


async def test_a_cancelled_sleeper_is_forgotten():
    """A sleeper that is cancelled neither wakes nor holds the clock up."""
    clock = SimulatedClock()
    async with asyncio.TaskGroup() as group:
        sleeper = group.create_task(clock.sleep(1.0))
        await clock.settle()
        sleeper.cancel()
        await clock.settle()
    assert clock.next_wake_seconds() is None
    await clock.advance(2.0)
    assert clock.monotonic() == 2.0


async def test_wall_steps_leave_monotonic_time_alone():
    """Setting the wall clock moves neither monotonic time nor sleepers."""
    clock = SimulatedClock()
    clock.step_wall(-3_000)
    assert (clock.now_ms(), clock.monotonic()) == (START_MS - 3_000, 0.0)


def test_the_same_seed_gives_the_same_run():
    """Two clocks of one seed give the same jitter and ids; another seed gives other jitter."""
    one, same, other = SimulatedClock(seed=5), SimulatedClock(seed=5), SimulatedClock(seed=6)
    drawn = [one.jitter() for _ in range(5)]
    assert drawn == [same.jitter() for _ in range(5)]
    assert drawn != [other.jitter() for _ in range(5)]
    assert one.new_ids(3) == same.new_ids(3)
