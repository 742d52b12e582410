"""Limits on how often a user may ask."""

from collections.abc import Sequence
from typing import Protocol


class RateLimiter(Protocol):
    """Token buckets, one per name (a user, an API key)."""

    async def take(self, names: Sequence[str]) -> list[float]:
        """Takes one token for each name, in order; names may repeat.

        Returns 0.0 for each token taken; where none was taken, the seconds until the next one.
        Raises `Unavailable` where no token was taken, and `OutcomeUnknown` where some may have been; callers treat both
        alike.
        """
        ...
