"""Ensures that only one core works on a topic: the one whose directory remembers what was carried out.

A group gives partitions to every member that joins it, and to another when a member is gone. A core that took over from
one with another directory would carry out again what it is told again. So the owner's name is kept as the metadata of
the group's offset on one partition. Kafka accepts it only from a member of the group's present generation, and one
member has that partition, so two cores never own the topic at once. The name stays while the owner is away, for as long
as Kafka keeps the offsets.
"""

from collections.abc import Callable

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from internal_transfer.adapters.kafka.settings import ClientLog, KafkaConnection
from internal_transfer.ports.errors import StartRefusedError

_log = structlog.get_logger(__name__)

OWNED_ON = 0
"""The partition whose committed offset carries the owner's name: every topic has it, and one member at a time."""

CALL_SECONDS = 5.0


class PrefixOwnership:
    """One owner's claim to a topic; `refused` is called in the event loop when the topic has another owner."""

    def __init__(self, owner: str, refused: Callable[[StartRefusedError], None]) -> None:
        assert owner, "no name is how an offset says that nobody has claimed the topic"
        self.owner = owner
        self.refused = refused

    def settle(self, consumer: Consumer, topic: str, *, may_claim: bool) -> bool:
        """Tells whether the topic is the owner's; with `may_claim`, claims a topic that has no owner.

        Only the member that has `OWNED_ON` may claim. Blocks for up to `CALL_SECONDS` per call to Kafka. Raises
        `StartRefusedError` where the topic has another owner, and `KafkaException` where that cannot be found out.
        """
        [place] = consumer.committed([TopicPartition(topic, OWNED_ON)], timeout=CALL_SECONDS)
        if place.error is not None:
            raise KafkaException(place.error)
        if place.metadata and place.metadata != self.owner:
            raise StartRefusedError(
                f"another trading core ({place.metadata}) works on the topic {topic}, and this one ({self.owner}) does "
                "not know what that one has carried out; start the core on that one's data directory, or hand the "
                'topic over (docs/guides/trading-core.md, "One core, one directory")'
            )
        if place.metadata == self.owner:
            return True
        if not may_claim:
            return False
        # Before the first commit any offset will do: one that is gone means the earliest.
        claimed = TopicPartition(topic, OWNED_ON, max(place.offset, 0), self.owner)
        consumer.commit(offsets=[claimed], asynchronous=False)
        _log.info("kafka_topic_claimed", topic=topic, owner=self.owner)
        return True

    def look(self, connection: KafkaConnection, topic: str, group: str) -> None:
        """Raises `StartRefusedError` where the topic has another owner, without joining the group. Blocks.

        A core that was started by mistake thus does not disturb the one that works. Returns where the owner cannot be
        found out, since a member of the group checks again.
        """
        consumer = Consumer(connection.client_settings() | {"group.id": group}, logger=ClientLog())
        try:
            self.settle(consumer, topic, may_claim=False)
        except KafkaException as error:
            _log.warning("kafka_claim_not_read", topic=topic, error=str(error))
        finally:
            consumer.close()
