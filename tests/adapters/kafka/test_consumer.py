"""What a group's member hands over when its client fails or a partition is taken away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import confluent_kafka

from contracts.event_buses import kafka_connection, own_topics
from internal_transfer.adapters.kafka import consumer as module
from internal_transfer.adapters.kafka.consumer import GroupConsumer, Received
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.errors import System

Send = Callable[..., Awaitable[None]]


class FailsAfterAMessage(confluent_kafka.Consumer):
    """A client that fails once, in the call after its first message."""

    brought = False
    failed = False

    def poll(self, timeout: float = -1) -> confluent_kafka.Message | None:
        if self.brought and not self.failed:
            self.failed = True
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TRANSPORT))
        message = super().poll(timeout)
        self.brought = self.brought or (message is not None and message.error() is None)
        return message


class LeavesAfterAMessage(confluent_kafka.Consumer):
    """A client whose partitions are taken away in the call after its first message."""

    brought = False
    left = False

    def poll(self, timeout: float = -1) -> confluent_kafka.Message | None:
        if self.brought and not self.left:
            self.left = True
            self.unsubscribe()
            # Until it has been told, which it is in one of these calls.
            while self.assignment():
                super().poll(0.1)
            return None
        message = super().poll(timeout)
        self.brought = self.brought or (message is not None and message.error() is None)
        return message


@asynccontextmanager
async def running(events: asyncio.Queue[bytes]) -> AsyncIterator[tuple[GroupConsumer[bytes], Send]]:
    """A member that puts what it hands over into `events` and finishes it, and a function that sends it messages."""
    connection, topics = kafka_connection(), own_topics()
    await Cluster(connection, topics).create_topics(partitions=1)
    producer = KafkaProducer(connection, system=System.BUS)
    producer.start()

    def deliver(messages: Sequence[Received[bytes]]) -> None:
        for message in messages:
            events.put_nowait(message.item)
            consumer.finish([message.place])

    consumer = GroupConsumer(
        connection,
        topic=topics.commands,
        group=topics.prefix,
        dead_letters=topics.dead_letters,
        producer=producer,
        decode=bytes,
        deliver=deliver,
        revoke=lambda _: events.put_nowait(b"taken away"),
        clock=SystemClock(),
    )
    consumer.start()

    async def send(*values: bytes) -> None:
        await producer.send([Outgoing(topics.commands, b"1", value, []) for value in values])

    yield consumer, send
    await consumer.close()
    await producer.close()


async def test_what_came_before_a_failure_is_handed_on(monkeypatch):
    """A client that fails between two messages loses neither, so its partition does not stand still."""
    monkeypatch.setattr(module, "Consumer", FailsAfterAMessage)
    events: asyncio.Queue[bytes] = asyncio.Queue()
    async with running(events) as (consumer, send):
        await send(b"first", b"second")
        assert await events.get() == b"first"
        assert await events.get() == b"second"
        assert consumer.outstanding == 0


async def test_what_came_before_a_partition_went_is_told_before(monkeypatch):
    """A message that came before its partition was taken away is handed over before the revocation, so that it is
    forgotten with the partition.
    """
    monkeypatch.setattr(module, "Consumer", LeavesAfterAMessage)
    events: asyncio.Queue[bytes] = asyncio.Queue()
    async with running(events) as (_, send):
        await send(b"first")
        assert [await events.get(), await events.get()] == [b"first", b"taken away"]
