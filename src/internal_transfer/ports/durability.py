"""When results may be told to others."""

from typing import Protocol


class Durability(Protocol):
    """Tells when what the ports have answered so far is safe from a crash."""

    async def durable(self) -> None:
        """Returns when everything that ports answered before this call is on stable storage.

        At once where every call is durable before it returns. Where calls share a commit, waits for that commit and
        raises `OutcomeUnknown` or `Unavailable` if it fails; then none of those answers may be used. There is no
        deadline: such a commit ends with its turn of the loop, and a slow one that stood must not be told as unknown.
        """
        ...
