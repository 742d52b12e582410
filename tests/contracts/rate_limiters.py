"""The rate limiters that the contract runs on, each with a way to let its time pass."""

import os
import time

import pytest
from valkey.asyncio import Valkey

from internal_transfer.adapters.in_process.rate_limiter import MemoryRateLimiter
from internal_transfer.adapters.valkey.rate_limiter import ValkeyRateLimiter
from internal_transfer.adapters.valkey.settings import ValkeySettings
from internal_transfer.simulation.clock import SimulatedClock

BURST = 3
PER_MINUTE = 6
SECONDS_PER_TOKEN = 10.0

# The script sees only the server's time and its buckets, so moving all buckets back is the same as letting time pass.
_MOVE_ALL = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
for _, key in ipairs(KEYS) do
  local full_at = redis.call('GET', key) - ARGV[1]
  if full_at <= now then
    redis.call('DEL', key)
  else
    redis.call('SET', key, string.format('%.2f', full_at), 'PX', math.ceil((full_at - now) / 1000))
  end
end
"""


class MemoryLimits:
    """The limiter in memory, on a clock that stands still."""

    def __init__(self):
        self.clock = SimulatedClock()
        self.limiter = MemoryRateLimiter(self.clock, per_minute=PER_MINUTE, burst=BURST)

    async def advance(self, seconds):
        """Lets time pass."""
        await self.clock.advance(seconds)

    def about(self, seconds):
        """Returns a value that equals a wait of this many seconds."""
        return pytest.approx(seconds)

    async def close(self):
        """Nothing is to be closed."""


class ValkeyLimits:
    """A limiter on a real server, with its own keys."""

    def __init__(self, address, *, per_minute=PER_MINUTE, burst=BURST, **settings):
        self.settings = ValkeySettings(
            **{
                "host": address.host,
                "port": address.port,
                "password": address.password,
                "prefix": f"test-{os.urandom(8).hex()}:",
                "deadline_seconds": 30.0,
            }
            | settings
        )
        self.limiter = ValkeyRateLimiter(self.settings, per_minute=per_minute, burst=burst)
        self.server = Valkey(host=address.host, port=address.port, password=address.password)
        self._since = time.monotonic()

    async def keys(self):
        """All keys of this limiter."""
        return [key async for key in self.server.scan_iter(match=f"{self.settings.prefix}*", count=10_000)]

    async def advance(self, seconds):
        """Lets time pass by moving the buckets, since the server's clock cannot be moved; negative sets it back."""
        keys = await self.keys()
        await self.server.eval(_MOVE_ALL, len(keys), *keys, seconds * 1e6)

    def about(self, seconds):
        """Returns a value that equals a wait of this many seconds, less at most the real time that has passed."""
        slack = time.monotonic() - self._since + 0.001
        return pytest.approx(seconds - slack / 2, abs=slack / 2 + 1e-6)

    async def close(self):
        """Closes the connections."""
        await self.limiter.close()
        await self.server.aclose()
