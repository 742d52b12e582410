"""How the verdicts of trading cores reach the settler."""

from collections.abc import Sequence
from typing import Protocol

from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.bounds import waits


class Delivery(Protocol):
    """Verdicts handed to one settler, in order per transfer, until it acknowledges them."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """The verdicts of the cores."""
        ...


class EventBus(Protocol):
    """Delivers verdicts at least once and in order per transfer, until the work on them is durable."""

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Makes verdicts available to the settlers; raises `Unavailable` when the bus is full or cannot be reached."""
        ...

    @waits
    async def take(self, most: int) -> Delivery:
        """Waits for verdicts and hands out at most this many."""
        ...

    async def acknowledge(self, delivery: Delivery) -> None:
        """Tells the bus that the work on a delivery is durable, so that it is not handed out again."""
        ...
