"""What every adapter of `ports/rate_limiter.py` promises, and the bounds of the one in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.rate_limiters import BURST, PER_MINUTE, SECONDS_PER_TOKEN, MemoryLimits, ValkeyLimits
from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.simulation.clock import SimulatedClock
from real_servers import need


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture(params=["memory", "valkey"])
async def limits(request):
    """A limiter, and its time."""
    limits = MemoryLimits() if request.param == "memory" else ValkeyLimits(need("valkey"))
    yield limits
    await limits.close()


@pytest.fixture
def limiter(limits):
    return limits.limiter


async def test_a_burst_and_no_more(limiter):
    """A fresh name may take its burst within one batch; the next is told how long until a token comes."""
    assert await limiter.take(["alice"] * 4) == [0.0, 0.0, 0.0, SECONDS_PER_TOKEN]


async def test_nothing_asked(limiter):
    """An empty batch has an empty answer."""
    assert await limiter.take([]) == []


async def test_names_do_not_share(limits, limiter):
    """One name's exhaustion does not touch another's tokens, and answers are in the order asked."""
    await limiter.take(["alice"] * BURST)
    assert await limiter.take(["bob", "alice", "bob"]) == [0.0, limits.about(SECONDS_PER_TOKEN), 0.0]


async def test_a_batch_of_many_names(limiter):
    """A thousand names in one batch get what each would get alone."""
    names = [f"name-{number}" for number in range(1_000)]
    assert await limiter.take(names * 2) == [0.0] * 2_000
    assert [wait > 0.0 for wait in await limiter.take(names * 2)] == [False] * 1_000 + [True] * 1_000


async def test_tokens_come_back_with_time(limits, limiter):
    """A token comes back after its time, one at a time, and the time told is the time it takes."""
    await limiter.take(["alice"] * BURST)
    await limits.advance(4.0)
    (wait,) = await limiter.take(["alice"])
    assert wait == limits.about(6.0)
    await limits.advance(wait)
    assert await limiter.take(["alice", "alice"]) == [0.0, limits.about(SECONDS_PER_TOKEN)]


async def test_a_refusal_takes_no_token(limits, limiter):
    """Asking in vain, however often, does not put the next token off."""
    await limiter.take(["alice"] * BURST)
    await limiter.take(["alice"] * 50)
    await limits.advance(SECONDS_PER_TOKEN)
    assert await limiter.take(["alice"]) == [0.0]


async def test_idle_time_gives_no_more_than_a_burst(limits, limiter):
    """A bucket does not grow beyond its burst, however long nobody takes from it."""
    await limiter.take(["alice"])
    await limits.advance(86_400.0)
    answers = await limiter.take(["alice"] * 5)
    assert [answer == 0.0 for answer in answers] == [True] * BURST + [False] * 2


# What follows is about the limiter in memory itself.


async def test_the_wall_clock_does_not_matter(clock):
    """Setting the wall clock forward gives no tokens, and setting it back takes none."""
    limiter = MemoryRateLimiter(clock, per_minute=PER_MINUTE, burst=BURST)
    await limiter.take(["alice"] * BURST)
    clock.step_wall(3_600_000)
    assert await limiter.take(["alice"]) == [SECONDS_PER_TOKEN]
    clock.step_wall(-7_200_000)
    await clock.advance(SECONDS_PER_TOKEN)
    assert await limiter.take(["alice"]) == [0.0]


@given(pauses=st.lists(st.floats(0.0, 30.0), max_size=40))
async def test_never_more_than_the_rate(pauses):
    """Over any stretch of asking, what was let through is at most the burst and what came back meanwhile."""
    clock = SimulatedClock()
    limiter = MemoryRateLimiter(clock, per_minute=PER_MINUTE, burst=BURST)
    taken = 0
    for pause in pauses:
        await clock.advance(pause)
        taken += (await limiter.take(["alice", "alice"])).count(0.0)
        assert taken <= BURST + clock.monotonic() / SECONDS_PER_TOKEN + 1e-3


async def test_full_buckets_are_forgotten_first(clock):
    """When there is no more room, idle names go and an exhausted one keeps its exhaustion."""
    limiter = MemoryRateLimiter(clock, per_minute=PER_MINUTE, burst=BURST, names_max=10)
    await limiter.take([f"idle-{number}" for number in range(9)])
    await clock.advance(SECONDS_PER_TOKEN)
    await limiter.take(["greedy"] * BURST)
    await limiter.take(["new"])
    assert limiter.names == 2
    assert await limiter.take(["greedy"]) == [SECONDS_PER_TOKEN]


async def test_the_number_of_names_is_bounded(clock):
    """Where no bucket is full, those nearest to full make room, so memory is bounded and the greedy stay known."""
    limiter = MemoryRateLimiter(clock, per_minute=PER_MINUTE, burst=BURST, names_max=10)
    await limiter.take(["greedy"] * BURST)
    for number in range(200):
        await limiter.take([f"name-{number}"])
        assert limiter.names <= 10
    assert await limiter.take(["greedy"]) == [SECONDS_PER_TOKEN]
