"""Token buckets in the memory of one process."""

import heapq
from collections.abc import Sequence

from internal_transfer.ports.clock import Clock

_SECONDS_PER_MINUTE = 60.0
_ROOM_MADE = 64
"""One in this many buckets is forgotten at a time, so that the search for them is rare."""


class MemoryRateLimiter:
    """Implements `RateLimiter`: each name may take `burst` tokens at once and gets `per_minute` new ones.

    A bucket is one number: the time on the monotonic clock at which it will be full again. At most `names_max` buckets
    are kept. Full ones are forgotten first, which changes nothing, then those that are nearest to full.
    """

    def __init__(self, clock: Clock, *, per_minute: int, burst: int, names_max: int = 100_000) -> None:
        assert per_minute > 0, "a limit lets something through"
        assert burst > 0, "a bucket holds at least one token"
        assert names_max > 0, "at least one name is kept"
        self._clock = clock
        self._seconds_per_token = _SECONDS_PER_MINUTE / per_minute
        self._seconds_to_fill = self._seconds_per_token * burst
        self._names_max = names_max
        self._full_at: dict[str, float] = {}

    @property
    def names(self) -> int:
        """The number of buckets that are kept."""
        return len(self._full_at)

    async def take(self, names: Sequence[str]) -> list[float]:
        """Takes one token for each name, in order; see the port."""
        now = self._clock.monotonic()
        return [self._take(name, now) for name in names]

    def _take(self, name: str, now: float) -> float:
        full_at = self._full_at.get(name)
        if full_at is None:
            if len(self._full_at) >= self._names_max:
                self._make_room(now)
            full_at = now
        after = max(full_at, now) + self._seconds_per_token
        wait = after - now - self._seconds_to_fill
        # Rounding errors in sums of fractions must not cost a whole token.
        if wait > self._seconds_per_token * 1e-6:
            return wait
        self._full_at[name] = after
        return 0.0

    def _make_room(self, now: float) -> None:
        full_at = self._full_at
        for name in [name for name, at in full_at.items() if at <= now]:
            del full_at[name]
        surplus = len(full_at) - (self._names_max - max(1, self._names_max // _ROOM_MADE))
        if surplus > 0:
            for name in heapq.nsmallest(surplus, full_at, key=full_at.__getitem__):
                del full_at[name]
