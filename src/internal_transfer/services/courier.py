"""Publishes the events of the store's feed, so that other programs learn what becomes of transfers."""

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
    """The role that tells other programs. Several may run; then events come more than once, as their readers expect.

    It records its position in the feed after it has published the events before it, so after a crash some events are
    published again and none is left out.
    """

    def __init__(self, ports: Ports, publisher: EventPublisher, bounds: CourierBounds) -> None:
        self._store = ports.store
        self._publisher = publisher
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._bounds = bounds

    async def run(self) -> None:
        """Publishes until cancelled; a failure is counted, and the same events are tried again."""
        while True:
            pause = self._bounds.failure_seconds
            try:
                # After a page that was not full, wait for more: a page of one event costs a store almost as much.
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
        # Another courier may have moved on in the meantime.
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
