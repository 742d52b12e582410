"""Publishes the events of transfers to a Kafka topic, keyed by transfer id."""

from collections.abc import Sequence

from internal_transfer.adapters.kafka.messages import about_transfer
from internal_transfer.adapters.kafka.producer import KafkaProducer
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.domain.identifier import TransferId
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.event_publisher import TransferEvent
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.transfer_events import encode_transfer_event


class KafkaEventPublisher:
    """Implements `EventPublisher`."""

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self._topics = topics
        self._cluster = Cluster(connection, topics)
        self._producer = KafkaProducer(connection, system=System.BUS)

    async def start(self) -> None:
        """Connects.

        Raises `Unavailable` where the cluster cannot be reached, and `StartRefusedError` where it cannot be used.
        """
        await self._cluster.require()
        self._producer.start()

    async def close(self) -> None:
        """Sends what is on its way and disconnects."""
        await self._producer.close()

    async def check(self) -> list[Finding]:
        """The findings of `doctor`."""
        return await self._cluster.check()

    async def publish(self, events: Sequence[TransferEvent]) -> None:
        """Sends events; returns when all replicas have them. See the port."""
        for place, wave in enumerate(_waves(events)):
            messages = [
                about_transfer(self._topics.events, each.event.transfer_id, encode_transfer_event(each))
                for each in wave
            ]
            try:
                await self._producer.send(messages)
            except Unavailable as error:
                if place:
                    raise OutcomeUnknown(error.system, error.message) from error
                raise


def _waves(events: Sequence[TransferEvent]) -> list[list[TransferEvent]]:
    """Splits events into parts that hold at most one event of each transfer.

    A message that is given up does not hold up those sent after it, so an event is sent only when the one before it is
    confirmed.
    """
    waves: list[list[TransferEvent]] = []
    seen: dict[TransferId, int] = {}
    for each in events:
        wave = seen.get(each.event.transfer_id, 0)
        seen[each.event.transfer_id] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(each)
    return waves
