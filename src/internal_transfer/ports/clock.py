"""Time, waiting, randomness and ids; the only way to any of them, so that a simulation can own them."""

from typing import Protocol

from internal_transfer.domain.identifier import TransferId


class Clock(Protocol):
    """A clock that also draws ids."""

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since 1970-01-01 UTC; may step backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never steps backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits for this long on the monotonic clock."""
        ...

    def jitter(self) -> float:
        """A random number, at least 0 and below 1, for spreading retries."""
        ...

    def lease(self, node: int, until_monotonic: float) -> None:
        """Lets ids be drawn under a node's number until this time on the monotonic clock; renewing only moves the time.

        The caller takes the lease's safety margin off, and counts from before it asked the store for the lease.
        """
        ...

    def new_ids(self, count: int) -> list[TransferId]:
        """Draws ids, rising, from wall time, the leased worker id and a counter.

        Backward steps of the wall clock of up to 5 s are bridged by counting on from the last id's time. Raises
        `Unavailable` (of the store) after a larger step, and when the worker's lease ran out: then no ids are safe to
        draw until time has caught up or the lease is renewed.
        """
        ...
