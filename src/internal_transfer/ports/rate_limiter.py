"""Limits on how often a user may ask."""

from collections.abc import Sequence
from typing import Protocol


class RateLimiter(Protocol):
    """Token buckets, one per name (a user, an API key)."""

    async def take(self, names: Sequence[str]) -> list[float]:
        """Takes one token for each name, in order; names may repeat.

        Answers, for each, 0.0 where a token was taken, else the seconds until the next one; then none was taken.
        Raises `Unavailable` when a shared limiter cannot be reached, and `OutcomeUnknown` when tokens may have been
        taken without an answer.
        """
        ...
