"""The reader of replies while its topic gets more partitions."""

import asyncio

from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from contracts.event_buses import kafka_connection, own_topics
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.tail import LOOK_SECONDS, TailReader
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.adapters.system.clock import SystemClock


class MovedClock(SystemClock):
    """The system's clock, which a test may set forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def write_to(connection: KafkaConnection, topic: str, partition: int, key: bytes, value: bytes) -> None:
    """Writes one message to a partition, as soon as the brokers know it, and returns when it is confirmed."""
    producer = Producer(connection.client_settings())
    errors: list[KafkaError | None] = [KafkaError(KafkaError._UNKNOWN_PARTITION)]
    while errors[-1] is not None:
        assert errors[-1].code() == KafkaError._UNKNOWN_PARTITION
        producer.produce(topic, value, key, partition=partition, on_delivery=lambda error, _: errors.append(error))
        producer.flush()


async def test_partitions_that_are_added_are_read():
    """Replies in a partition that is added while the reader runs arrive, also those written before the reader
    looked.
    """
    connection, topics, clock = kafka_connection(), own_topics(), MovedClock()
    await Cluster(connection, topics).create_topics(partitions=1)
    come: asyncio.Queue[bytes] = asyncio.Queue()

    def deliver(values: list[bytes]) -> None:
        for value in values:
            come.put_nowait(value)

    reader = TailReader(connection, topic=topics.replies, own_prefix=b"mine.", deliver=deliver, clock=clock)
    await reader.start()
    admin = AdminClient(connection.client_settings())
    await asyncio.to_thread(admin.create_partitions([NewPartitions(topics.replies, 2)])[topics.replies].result)
    await asyncio.to_thread(write_to, connection, topics.replies, 1, b"mine.1", b"before the look")
    await asyncio.to_thread(write_to, connection, topics.replies, 0, b"mine.2", b"in the old partition")
    assert await come.get() == b"in the old partition"
    clock.ahead += LOOK_SECONDS
    assert await come.get() == b"before the look"
    await asyncio.to_thread(write_to, connection, topics.replies, 1, b"mine.3", b"after the look")
    assert await come.get() == b"after the look"
    clock.ahead += LOOK_SECONDS
    await asyncio.to_thread(write_to, connection, topics.replies, 0, b"mine.4", b"the last")
    assert await come.get() == b"the last"
    await reader.close()
