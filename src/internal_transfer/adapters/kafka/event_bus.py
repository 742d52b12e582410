"""The event bus over Kafka: confirmations come from a topic whose partitions are divided among the settlers.

Messages are keyed by transfer id, so those of one transfer come in order and to one process. Offsets are committed
after the work: what was not acknowledged before a crash is received again.
"""

from collections.abc import Callable, Sequence

from internal_transfer.adapters.kafka.consumer import DEFAULT_BOUNDS, ConsumerBounds, GroupConsumer, Received
from internal_transfer.adapters.kafka.messages import verdict_messages
from internal_transfer.adapters.kafka.producer import KafkaProducer
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.deliveries import Deliveries, HandedOut
from internal_transfer.ports.errors import System
from internal_transfer.ports.event_bus import Delivery
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import decode_verdict

GROUP = "settlers"


class KafkaEventBus:
    """Implements `EventBus`; several consumers may take at the same time, see `ports/deliveries.py`.

    `acknowledge` does not wait: the offsets are committed within `ConsumerBounds.commit_seconds`, and when the bus is
    closed or a partition is given away. All buses of one `group` share the confirmations. `on_poison` is told, in
    another thread, why a message could not be decoded.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        clock: Clock,
        group: str = GROUP,
        bounds: ConsumerBounds = DEFAULT_BOUNDS,
        on_poison: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._topics = topics
        self._cluster = Cluster(connection, topics)
        self._producer = KafkaProducer(connection, system=System.BUS)
        self._deliveries: Deliveries[Received[Verdict]] = Deliveries(_verdict_of)
        self._consumer = GroupConsumer(
            connection,
            topic=topics.verdicts,
            group=f"{topics.prefix}.{group}",
            dead_letters=topics.dead_letters,
            producer=self._producer,
            decode=decode_verdict,
            deliver=self._deliveries.add,
            revoke=self._forget,
            clock=clock,
            bounds=bounds,
            on_poison=on_poison,
        )

    @property
    def failure(self) -> str | None:
        """Why no confirmations come, as far as is known; for readiness."""
        failure = self._consumer.failure
        # The client's messages, such as "1/1 brokers are down", do not say whose brokers they mean.
        return failure and f"Kafka: {failure}"

    @property
    def owed(self) -> int:
        """How many confirmations were received and are not acknowledged yet."""
        return self._consumer.outstanding

    @property
    def partitions(self) -> int:
        """How many partitions this process has now."""
        return self._consumer.partitions

    async def start(self) -> None:
        """Connects and joins the settlers.

        Raises `Unavailable` where the cluster cannot be reached, and `StartRefusedError` where it cannot be used.
        """
        await self._cluster.require()
        self._producer.start()
        self._consumer.start()

    async def close(self) -> None:
        """Commits what is acknowledged and leaves the group, so that others take over at once."""
        await self._consumer.close()
        await self._producer.close()

    async def abandon(self) -> None:
        """Ends without another commit, as a crash would."""
        await self._consumer.abandon()
        await self._producer.close()

    async def check(self) -> list[Finding]:
        """The findings of `doctor`."""
        return await self._cluster.check()

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Sends confirmations; returns when all replicas have them.

        Raises `Unavailable` where none was sent, and `OutcomeUnknown` where some may have been.
        """
        await self._producer.send(verdict_messages(self._topics, verdicts))

    async def take(self, most: int) -> Delivery:
        """Waits for at most this many confirmations, of transfers that no consumer in this process has in hand.

        Goes on waiting while the cluster is away, since the client connects again by itself; see `failure`.
        """
        return await self._deliveries.take(most)

    async def acknowledge(self, delivery: Delivery) -> None:
        """Has the delivery's offsets committed; does nothing for one that was handed out again meanwhile."""
        assert isinstance(delivery, HandedOut), "a delivery of this bus"
        if self._deliveries.settle(delivery):
            self._consumer.finish(received.place for received in delivery.items)

    def _forget(self, gone: frozenset[tuple[int, int]]) -> None:
        self._deliveries.forget(lambda received: (received.place.generation, received.place.partition) in gone)


def _verdict_of(received: Received[Verdict]) -> Verdict:
    return received.item
