"""The event bus of a single process: a bounded queue that keeps each delivery until it is acknowledged."""

from collections.abc import Sequence

from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.deliveries import Deliveries, HandedOut
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.event_bus import Delivery


class MemoryEventBus:
    """Implements `EventBus`; several consumers may take at the same time (see `ports/deliveries.py`).

    `verdicts_max` bounds the confirmations that are not acknowledged. They die with the process; a core repeats its
    confirmation when asked.
    """

    def __init__(self, *, verdicts_max: int = 10_000) -> None:
        self._verdicts_max = verdicts_max
        self._owed = 0
        self._deliveries: Deliveries[Verdict] = Deliveries(lambda verdict: verdict)

    @property
    def owed(self) -> int:
        """The number of confirmations that are not acknowledged."""
        return self._owed

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Queues all of them; raises `Unavailable` and queues none where they do not all fit."""
        if self._owed + len(verdicts) > self._verdicts_max:
            raise Unavailable(System.BUS, f"{self._owed} confirmations are waiting, at most {self._verdicts_max} may")
        self._owed += len(verdicts)
        self._deliveries.add(verdicts)

    async def take(self, most: int) -> Delivery:
        """Waits for confirmations of transfers that no consumer has in hand, and returns at most this many."""
        return await self._deliveries.take(most)

    async def acknowledge(self, delivery: Delivery) -> None:
        """Settles a delivery; one that was handed out again meanwhile stays unacknowledged."""
        assert isinstance(delivery, HandedOut), "a delivery of this bus"
        if self._deliveries.settle(delivery):
            self._owed -= len(delivery.verdicts)

    def redeliver(self) -> None:
        """Hands all unacknowledged deliveries out again, before newer ones; for use when consumers restart."""
        self._deliveries.redeliver()
