"""Events of transfers on a Kafka topic, as their readers find them."""

import pytest

from contracts.event_buses import kafka_connection, own_topics, read_topic
from internal_transfer.adapters.kafka.event_publisher import KafkaEventPublisher
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.conformance.transfer_store.transfers import transfer
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.event_publisher import TransferEvent
from internal_transfer.ports.transfer_store import Event
from internal_transfer.wire.core_messages import UndecodableError
from internal_transfer.wire.trace import traceparent
from internal_transfer.wire.transfer_events import decode_transfer_event, encode_transfer_event


def event(number: int, version: int, status: Status, code: Code | None = None) -> TransferEvent:
    about = transfer(number)
    return TransferEvent(Event(about.id, version, status, about.created_at + version, code), about)


async def test_events_as_their_readers_find_them():
    """Events are keyed by transfer and come in order for each, with the transfer's constant fields and its trace."""
    connection, topics = kafka_connection(), own_topics()
    await Cluster(connection, topics).create_topics(partitions=3)
    publisher = KafkaEventPublisher(connection, topics)
    await publisher.start()
    statuses = [Status.REQUESTING, Status.PENDING, Status.SUCCESS]
    page = [event(number, version + 1, status) for number in range(20) for version, status in enumerate(statuses)]
    await publisher.publish([*page, event(20, 1, Status.REQUESTING), event(20, 2, Status.FAILED, Code.EXPIRED)])
    await publisher.close()
    messages = await read_topic(connection, topics.events, 62)
    found = [(each.key(), decode_transfer_event(each.value())) for each in messages]
    for number in range(20):
        key = str(transfer(number).id)
        mine = [message for at, message in found if at == key.encode()]
        assert [(message.version, message.status) for message in mine] == list(enumerate(statuses, 1))
        assert all((message.transfer_id, message.amount, message.asset) == (key, "100", "USDT") for message in mine)
        assert mine[0].source.type == "funding"
        assert mine[0].target.type == "spot"
    (*_, last) = [message for at, message in found if at == str(transfer(20).id).encode()]
    assert (last.status, last.code) == (Status.FAILED, Code.EXPIRED)
    at, headers = messages[0].key(), dict(messages[0].headers())
    assert headers["request-id"] == at
    assert headers["traceparent"] == traceparent(int(at)).encode()


async def test_a_missing_topic():
    """A publisher whose topic was never made does not start."""
    with pytest.raises(StartRefusedError, match="does not exist"):
        await KafkaEventPublisher(kafka_connection(), own_topics()).start()


def test_an_event_byte_by_byte():
    """An event encodes to the promised bytes and decodes from them; other bytes are refused."""
    data = encode_transfer_event(event(0, 2, Status.FAILED, Code.EXPIRED))
    about = transfer(0)
    assert (
        data
        == (
            f'{{"type":"transfer_event/1","transfer_id":"{about.id}","version":2,"status":"FAILED",'
            f'"at":{about.created_at + 2},"code":"EXPIRED","owner":"ada","source":{{"owner":"ada","type":"funding"}},'
            f'"target":{{"owner":"ada","type":"spot"}},"asset":"USDT","amount":"100"}}'
        ).encode()
    )
    assert decode_transfer_event(data).version == 2
    for wrong in (data.replace(b"event/1", b"event/2"), data.replace(b'"version":2', b'"version":0'), b"{}", b"\xff"):
        with pytest.raises(UndecodableError):
            decode_transfer_event(wrong)
