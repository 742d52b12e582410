"""A shared limiter with one in memory behind it, for times when the shared one is away."""

from collections.abc import Callable, Sequence

from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.rate_limiter import RateLimiter

RETRY_SECONDS = 1.0


class FallbackRateLimiter:
    """Implements `RateLimiter`: asks the shared limiter, or the one in memory while the shared one fails.

    After a failure the shared limiter is not asked for `RETRY_SECONDS`; then one batch tries it again, and the others
    do not wait for the outcome. `on_fallback` is called with the failure and the number of names for every batch that
    the limiter in memory decides. This limiter itself never fails.
    """

    def __init__(
        self,
        primary: RateLimiter,
        local: RateLimiter,
        clock: Clock,
        on_fallback: Callable[[OperatingFailureError, int], None],
    ) -> None:
        self._primary = primary
        self._local = local
        self._clock = clock
        self._on_fallback = on_fallback
        self._failure: OperatingFailureError | None = None
        self._again_at = 0.0

    @property
    def failure(self) -> OperatingFailureError | None:
        """Why the limiter in memory decides; None while the shared one does."""
        return self._failure

    async def take(self, names: Sequence[str]) -> list[float]:
        """Takes one token for each name, in order; see the port."""
        failure = self._failure
        if failure is not None:
            if self._clock.monotonic() < self._again_at:
                return await self._take_here(names, failure)
            # Set before the attempt, so that batches that come meanwhile do not wait for it.
            self._again_at = self._clock.monotonic() + RETRY_SECONDS
        try:
            waits = await self._primary.take(names)
        except OperatingFailureError as error:
            self._failure = error
            self._again_at = self._clock.monotonic() + RETRY_SECONDS
            return await self._take_here(names, error)
        self._failure = None
        return waits

    async def _take_here(self, names: Sequence[str], failure: OperatingFailureError) -> list[float]:
        self._on_fallback(failure, len(names))
        return await self._local.take(names)
