"""Who alone works on a topic, where the work rests on a memory that nobody else has.

A group gives partitions to whoever joins it, and to another when a member is gone. A core that remembers in its own
directory what it has carried out must not take over from one with another directory: it would carry out once more what
is told again. So the owner's name is kept as the metadata of the group's offset on one partition. Kafka takes it only
from a member of the group's present generation, of which one has that partition, so two can never own it at once; and
it stays when the owner is away, for as long as the offsets do.
"""

from collections.abc import Callable

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from internal_transfer.adapters.kafka.connection import ClientLog, KafkaConnection
from internal_transfer.ports.errors import StartRefusedError

_log = structlog.get_logger(__name__)

OWNED_ON = 0
"""The partition whose committed offset carries the ownership: every topic has it, and one member at a time."""

CALL_SECONDS = 5.0


class PrefixOwnership:
    """The wish of one owner to have a topic alone; `refused` is called in the event loop when another has it."""

    def __init__(self, owner: str, refused: Callable[[StartRefusedError], None]) -> None:
        assert owner, "no name is how an offset says that nobody has claimed the topic"
        self.owner = owner
        self.refused = refused

    def settle(self, consumer: Consumer, topic: str, *, may_claim: bool) -> bool:
        """Tells whether the topic is the owner's; `may_claim` makes it so where it is nobody's.

        Only the member that has `OWNED_ON` may. Blocks for up to some seconds. Raises `StartRefusedError` where the
        topic is somebody else's, and `KafkaException` where that cannot be found out.
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
        # Before the first commit any offset will do: one that is not there any more means the earliest.
        claimed = TopicPartition(topic, OWNED_ON, max(place.offset, 0), self.owner)
        consumer.commit(offsets=[claimed], asynchronous=False)
        _log.info("kafka_topic_claimed", topic=topic, owner=self.owner)
        return True

    def look(self, connection: KafkaConnection, topic: str, group: str) -> None:
        """Raises `StartRefusedError` where the topic is somebody else's, without joining the group. Blocks.

        So a core that was started by mistake does not disturb the one that works. Where it cannot be found out this
        returns, since a member looks again.
        """
        consumer = Consumer(connection.client_settings() | {"group.id": group}, logger=ClientLog())
        try:
            self.settle(consumer, topic, may_claim=False)
        except KafkaException as error:
            _log.warning("kafka_claim_not_read", topic=topic, error=str(error))
        finally:
            consumer.close()
