"""Keys and headers of our messages on Kafka. Messages with one key arrive in the order in which they were sent."""

from collections.abc import Sequence

from internal_transfer.adapters.kafka.producer import Outgoing
from internal_transfer.adapters.kafka.topics import Topics
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict
from internal_transfer.wire.core_messages import encode_verdict
from internal_transfer.wire.trace import CONTENT_TYPE, REQUEST_ID, TRACEPARENT, traceparent

_CONTENT_TYPE: tuple[str, str | bytes | None] = ("content-type", CONTENT_TYPE.encode())


def about_transfer(topic: str, transfer_id: TransferId, value: bytes) -> Outgoing:
    """A message about a transfer, keyed by it; its headers carry the transfer's request id and trace context."""
    number = str(transfer_id).encode()
    trace = traceparent(transfer_id).encode()
    return Outgoing(topic, number, value, [_CONTENT_TYPE, (REQUEST_ID, number), (TRACEPARENT, trace)])


def about_query(topic: str, correlation_id: str, value: bytes) -> Outgoing:
    """A query or its reply, keyed by the correlation id that both carry."""
    return Outgoing(topic, correlation_id.encode(), value, [_CONTENT_TYPE])


def verdict_messages(topics: Topics, verdicts: Sequence[Verdict]) -> list[Outgoing]:
    """One message for each verdict."""
    return [about_transfer(topics.verdicts, verdict.transfer_id, encode_verdict(verdict)) for verdict in verdicts]
