"""Time, waiting, randomness and ids. All code gets them here, so that a simulation can control them."""

from typing import Protocol

from internal_transfer.domain.identifier import TransferId


class Clock(Protocol):
    """A clock that also draws random numbers and ids."""

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
        """Returns a random number, at least 0 and below 1, that spreads retries."""
        ...

    def lease(self, node: int, until_monotonic: float) -> None:
        """Lets ids of this node be drawn until a time on the monotonic clock; renewing a lease only moves the time.

        The caller counts from before it asked the store for the lease, and subtracts the safety margin.
        """
        ...

    def new_ids(self, count: int) -> list[TransferId]:
        """Draws rising ids from wall time, the leased node and a counter.

        When the wall clock steps back by up to 5 s, ids count on from the time of the last one. Raises `Unavailable`
        (of the store) after a larger step, until time has caught up, and after the end of the lease, until it is
        renewed: ids drawn then could repeat.
        """
        ...
