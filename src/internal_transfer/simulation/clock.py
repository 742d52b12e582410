"""A clock that stands still until it is advanced, and gives the same random numbers for the same seed."""

import asyncio
import heapq
import random
from math import inf

from internal_transfer.adapters.system.clock import IdSequence
from internal_transfer.domain.identifier import TransferId

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""

_ROUNDS_MAX = 100_000


class SimulatedClock:
    """Implements `Clock`: wall time, monotonic time, sleepers, jitter and ids, all owned by the simulation.

    It holds its node for ever, unless `lease` says otherwise. Needs asyncio's own event loop (see `settle`).
    """

    def __init__(self, *, seed: int = 0, start_ms: int = START_MS, node: int = 0) -> None:
        self._start_ms = start_ms
        self._elapsed_seconds = 0.0
        self._random = random.Random(seed)  # noqa: S311 - it has to be repeatable.
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = 0
        self._ids = IdSequence(self.now_ms, self.monotonic)
        self._ids.lease(node, inf)

    def now_ms(self) -> int:
        """The wall clock: the start, the time advanced, and the steps."""
        return self._start_ms + round(self._elapsed_seconds * 1000)

    def monotonic(self) -> float:
        """The seconds that were advanced."""
        return self._elapsed_seconds

    async def sleep(self, seconds: float) -> None:
        """Waits until the clock was advanced by this much; returns at once for zero or less."""
        if seconds <= 0:
            return
        sleeper = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleepers, (self._elapsed_seconds + seconds, self._slept, sleeper))
        await sleeper

    def jitter(self) -> float:
        """Returns the next number of the seed's sequence."""
        return self._random.random()

    def new_ids(self, count: int) -> list[TransferId]:
        """Draws ids; see the port."""
        return self._ids.draw(count)

    def lease(self, node: int, until_monotonic: float) -> None:
        """Replaces the lease for ever by one that ends."""
        self._ids.lease(node, until_monotonic)

    def step_wall(self, milliseconds: int) -> None:
        """Sets the wall clock forward, or back by a negative step; the monotonic clock stays as it is."""
        self._start_ms += milliseconds

    def next_wake_seconds(self) -> float | None:
        """Returns the time until the next sleeper is due, or None where nobody sleeps."""
        self._drop_cancelled()
        return self._sleepers[0][0] - self._elapsed_seconds if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Moves time on and wakes sleepers in the order of their times (then of their calls), each at its own time.

        After each wake everything that can run does so, and may go to sleep again within this time.
        """
        assert seconds >= 0, "time does not go back; `step_wall` sets the wall clock back"
        target = self._elapsed_seconds + seconds
        await self.settle()
        self._drop_cancelled()
        while self._sleepers and self._sleepers[0][0] <= target:
            self._elapsed_seconds, _, sleeper = heapq.heappop(self._sleepers)
            sleeper.set_result(None)
            await self.settle()
            self._drop_cancelled()
        self._elapsed_seconds = target

    async def settle(self) -> None:
        """Runs all other tasks until each of them waits for something."""
        loop = asyncio.get_running_loop()
        for _ in range(_ROUNDS_MAX):
            turn = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn
            if not loop._ready:  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public way to ask.
                return
        raise AssertionError(f"tasks were still running after {_ROUNDS_MAX} rounds of the event loop")

    def _drop_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].cancelled():
            heapq.heappop(self._sleepers)
