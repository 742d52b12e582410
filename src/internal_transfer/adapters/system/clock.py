"""The machine's clocks, and the ids drawn from them by a leased node."""

import asyncio
import random
import time
from collections.abc import Callable

from internal_transfer.domain.identifier import EPOCH_MS, NODES_MAX, PER_MILLISECOND_MAX, TransferId, snowflake
from internal_transfer.ports.errors import System, Unavailable

AHEAD_MS_MAX = 5_000
"""How far ids may run ahead of the wall clock, after it stepped back or the counter was used up."""

_NANOSECONDS_PER_MILLISECOND = 1_000_000


class IdSequence:
    """Draws rising ids from a wall clock; nothing else may draw ids of the same node.

    `now_ms` and `monotonic` are the clocks. The sequence never repeats a time and counter, even when the wall clock
    steps back: it counts on from the last id's time until the clock has caught up.
    """

    def __init__(self, now_ms: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._node: int | None = None
        self._until = 0.0
        self._at_ms = EPOCH_MS
        self._next = 0

    def lease(self, node: int, until_monotonic: float) -> None:
        """Lets ids of this node be drawn until a time on the monotonic clock; renewing a lease only moves the time.

        The caller counts from before it asked the store for the lease, and subtracts the safety margin.
        """
        assert 0 <= node < NODES_MAX, f"node out of range: {node}"
        if node != self._node:
            # In the same millisecond a smaller node would give smaller ids.
            self._at_ms, self._next = self._at_ms + 1, 0
            self._node = node
        self._until = until_monotonic

    def draw(self, count: int) -> list[TransferId]:
        """Draws all of these ids; raises `Unavailable` (of the store) and draws none where that is not safe."""
        node = self._node
        if node is None or self._monotonic() >= self._until:
            raise Unavailable(System.STORE, "the lease of the node ran out, so no ids can be drawn")
        now_ms = self._now_ms()
        at_ms, counter = self._at_ms, self._next
        if now_ms > at_ms:
            at_ms, counter = now_ms, 0
        last_ms = at_ms + (counter + count - 1) // PER_MILLISECOND_MAX
        if last_ms - now_ms > AHEAD_MS_MAX:
            raise Unavailable(
                System.STORE,
                f"the wall clock is {last_ms - now_ms} ms behind the newest id, more than {AHEAD_MS_MAX}; "
                "ids can be drawn again when it has caught up",
            )
        ids: list[TransferId] = []
        while count:
            fitting = min(count, PER_MILLISECOND_MAX - counter)
            if not fitting:
                at_ms, counter = at_ms + 1, 0
                continue
            first = snowflake(at_ms=at_ms, node=node, counter=counter)
            ids.extend(map(TransferId, range(first, first + fitting)))
            counter += fitting
            count -= fitting
        self._at_ms, self._next = at_ms, counter
        return ids


class SystemClock:
    """Implements `Clock` with the machine's clocks, which a test can replace by `wall_ns` and `monotonic`."""

    def __init__(
        self, *, wall_ns: Callable[[], int] = time.time_ns, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic = monotonic
        self._random = random.Random()  # noqa: S311 - it spreads retries and guards nothing.
        self._ids = IdSequence(self.now_ms, monotonic)

    def now_ms(self) -> int:
        """The machine's wall clock."""
        return self._wall_ns() // _NANOSECONDS_PER_MILLISECOND

    def monotonic(self) -> float:
        """The machine's monotonic clock."""
        return self._monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits on the event loop's clock, which is the monotonic one."""
        await asyncio.sleep(seconds)

    def jitter(self) -> float:
        """A random number from a generator that the machine seeded."""
        return self._random.random()

    def lease(self, node: int, until_monotonic: float) -> None:
        """Lets ids of a node be drawn; see `IdSequence.lease`. The caller renews it with `TransferStore.lease_node`."""
        self._ids.lease(node, until_monotonic)

    def new_ids(self, count: int) -> list[TransferId]:
        """Draws ids; see the port."""
        return self._ids.draw(count)
