"""A shared limiter with one in memory behind it."""

import asyncio

import pytest

from contracts.rate_limiters import BURST, PER_MINUTE, SECONDS_PER_TOKEN, ValkeyLimits
from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.adapters.in_process.rate_limiter_fallback import RETRY_SECONDS, FallbackRateLimiter
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.simulation.clock import SimulatedClock
from real_servers import own


class Fallback:
    """A limiter on a server that can be killed, and the fallbacks that were reported."""

    def __init__(self, server):
        self.server = server
        self.clock = SimulatedClock()
        self.limits = ValkeyLimits(server.address())
        self.told = []
        self.limiter = FallbackRateLimiter(
            self.limits.limiter,
            MemoryRateLimiter(self.clock, per_minute=PER_MINUTE, burst=BURST),
            self.clock,
            lambda failure, names: self.told.append((failure, names)),
        )


@pytest.fixture
async def fallback():
    with own("valkey") as server:
        fallback = Fallback(server)
        yield fallback
        await fallback.limits.close()


async def test_the_shared_limiter_decides_while_it_can(fallback):
    """While the server answers, its buckets decide and no fallback is reported."""
    await fallback.limits.limiter.take(["alice"] * 2)
    assert await fallback.limiter.take(["alice"] * 2) == [0.0, fallback.limits.about(SECONDS_PER_TOKEN)]
    assert fallback.told == []
    assert fallback.limiter.failure is None


async def test_limits_hold_in_this_process_while_the_server_is_away(fallback):
    """Without the server the buckets in memory decide, no caller sees a failure, and every batch is reported."""
    fallback.server.kill()
    assert await fallback.limiter.take(["alice"] * 4) == [0.0, 0.0, 0.0, SECONDS_PER_TOKEN]
    assert await fallback.limiter.take(["bob"]) == [0.0]
    failure = fallback.limiter.failure
    assert isinstance(failure, OperatingFailureError)
    assert fallback.told == [(failure, 4), (failure, 1)]


async def test_the_server_is_tried_again_after_a_while_and_not_before(fallback):
    """A server that is back is not asked until the time has passed, and decides again from then on."""
    fallback.server.kill()
    await fallback.limiter.take(["alice"])
    fallback.server.start()
    await fallback.clock.advance(RETRY_SECONDS * 0.9)
    await fallback.limiter.take(["alice"])
    assert len(fallback.told) == 2
    await fallback.clock.advance(RETRY_SECONDS * 0.1)
    assert await fallback.limiter.take(["alice"] * BURST) == [0.0] * BURST
    assert len(fallback.told) == 2
    assert fallback.limiter.failure is None


async def test_one_batch_tries_for_all(fallback):
    """While one batch waits for a server that may not answer, the others are decided in memory without waiting."""
    fallback.server.kill()
    await fallback.limiter.take(["alice"])
    fallback.server.start()
    fallback.server.pause()
    await fallback.clock.advance(RETRY_SECONDS)
    trying = asyncio.ensure_future(fallback.limiter.take(["bob"]))
    await fallback.clock.settle()
    assert await fallback.limiter.take(["carol"]) == [0.0]
    assert not trying.done()
    fallback.server.resume()
    assert await trying == [0.0]
    assert [names for _, names in fallback.told] == [1, 1]
