"""How confirmations of trading cores reach the settler."""

from collections.abc import Sequence
from typing import Protocol

from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.bounds import waits


class Delivery(Protocol):
    """Some confirmations, in order per transfer, that stay owed until they are acknowledged."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """What the cores said."""
        ...


class EventBus(Protocol):
    """At least once, ordered per transfer, acknowledged after the work is durable."""

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Makes confirmations available to the settlers; raises `Unavailable` when the bus is full or away."""
        ...

    @waits
    async def take(self, most: int) -> Delivery:
        """Waits for confirmations and hands out at most this many."""
        ...

    async def acknowledge(self, delivery: Delivery) -> None:
        """Says that the delivery's work is durable, so it is not handed out again."""
        ...
