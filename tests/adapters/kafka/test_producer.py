"""What the producer raises about messages that are not sent."""

import pytest

from contracts.event_buses import kafka_connection, own_topics
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.wire.core_messages import MESSAGE_BYTES_MAX


@pytest.fixture
async def producer():
    producer = KafkaProducer(kafka_connection(), system=System.CORE, queue_most=10)
    producer.start()
    yield producer
    await producer.close()


async def test_a_batch_that_does_not_fit(producer):
    """A batch larger than the queue is refused as a whole, before any of it is sent."""
    message = Outgoing(own_topics().commands, b"1", b"value", [])
    with pytest.raises(Unavailable, match="on their way") as failure:
        await producer.send([message] * 11)
    assert failure.value.system is System.CORE


async def test_a_message_that_is_too_large(producer):
    """A message beyond the limit is never sent, and one at the limit is."""
    topics = own_topics()
    await Cluster(kafka_connection(), topics).create_topics(partitions=1)
    # Bytes that do not compress: the limit is the message's own size.
    await producer.send([Outgoing(topics.commands, b"1", bytes(MESSAGE_BYTES_MAX), [("request-id", b"7" * 1_000)])])
    with pytest.raises(Unavailable, match="too large"):
        await producer.send([Outgoing(topics.commands, b"1", bytes(MESSAGE_BYTES_MAX * 2), [])])


async def test_a_topic_that_is_not_there(producer):
    """Sending to a topic that does not exist is `Unavailable`."""
    with pytest.raises(Unavailable, match=r"[Uu]nknown (topic|partition)"):
        await producer.send([Outgoing(own_topics().commands, b"1", b"value", [])])


async def test_a_closed_producer(producer):
    """A closed producer sends nothing."""
    await producer.close()
    with pytest.raises(Unavailable, match="closed"):
        await producer.send([Outgoing("any", b"1", b"value", [])])


async def test_a_cluster_that_is_away():
    """Without a broker nothing is sent: sending is `Unavailable`, and says that Kafka is away."""
    away = KafkaProducer(KafkaConnection(bootstrap="127.0.0.1:9", delivery_seconds=0.5), system=System.CORE)
    away.start()
    failure: OperatingFailureError | None = None
    # The outcome of what was sent before the client noticed is unknown.
    while not isinstance(failure, Unavailable):
        with pytest.raises((Unavailable, OutcomeUnknown)) as caught:
            await away.send([Outgoing("any", b"1", b"value", [])])
        failure = caught.value
    assert "cannot be reached" in failure.message
    await away.close()
