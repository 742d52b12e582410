"""Tells the world outside what becomes of transfers, from the store's feed."""

import structlog
from msgspec import Struct

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.ports.event_publisher import EventPublisher, TransferEvent
from internal_transfer.ports.transfer_store import Event
from internal_transfer.services.after_failures import leave_failed_turn

READER = "event_publisher"

_log = structlog.get_logger(__name__)


class CourierBounds(Struct, frozen=True, kw_only=True):
    """How many events are published at once; how long to wait when there are none, and after a failure."""

    batch_most: int = 512
    idle_seconds: float = 0.5
    failure_seconds: float = 1.0


class Courier:
    """The role that tells others. Several may run: events then come more than once, which their readers are used to.

    The position in the feed is recorded after what is before it was published, so a crash publishes some again and
    leaves none out.
    """

    def __init__(self, ports: Ports, publisher: EventPublisher, bounds: CourierBounds) -> None:
        self._store = ports.store
        self._publisher = publisher
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._bounds = bounds

    async def run(self) -> None:
        """Publishes until cancelled; what fails is counted and tried again."""
        while True:
            pause = self._bounds.failure_seconds
            try:
                # A page that is not full waits for more: a page of one costs a store nearly as much as a full one.
                if await self.publish_next() == self._bounds.batch_most:
                    continue
                pause = self._bounds.idle_seconds
            except OperatingFailureError as error:
                _log.warning("publishing_failed", error=str(error))
            except Exception as error:  # noqa: BLE001 - the role's outermost loop: a bug must neither end it nor hide.
                self._telemetry.failures.labels("courier", type(error).__name__).inc()
                _log.error("publishing_broke", exc_info=error)
            await leave_failed_turn(self._durability)
            await self._clock.sleep(pause)

    async def publish_next(self) -> int:
        """Publishes the next events of the feed and returns how many there were."""
        bounds = self._bounds
        # Another courier may have come further meanwhile.
        position = await self._store.reader_position(READER)
        page = await self._store.feed(position, bounds.batch_most)
        if not page:
            return 0
        events = await self._with_transfers([event for _, event in page])
        await self._durability.durable()
        await self._publisher.publish(events)
        await self._store.move_reader(READER, page[-1][0])
        await self._durability.durable()
        self._telemetry.batch_size.labels("publish").observe(len(page))
        return len(page)

    async def _with_transfers(self, events: list[Event]) -> list[TransferEvent]:
        ids = list({event.transfer_id: None for event in events})
        transfers = dict(zip(ids, await self._store.get(ids), strict=True))
        told = []
        for event in events:
            transfer = transfers[event.transfer_id]
            assert transfer is not None, f"an event without its transfer: {event.transfer_id}"
            told.append(TransferEvent(event, transfer))
        return told
