"""Verdicts as Kafka messages; the core sends them, and the event bus does where a core answers directly."""

from collections.abc import Sequence

from internal_transfer.adapters.kafka.headers import transfer_headers
from internal_transfer.adapters.kafka.producer import Outgoing
from internal_transfer.adapters.kafka.topics import Topics
from internal_transfer.domain.leg import Verdict
from internal_transfer.wire.core_messages import encode_verdict


def verdict_messages(topics: Topics, verdicts: Sequence[Verdict]) -> list[Outgoing]:
    """One message for each verdict, keyed by its transfer."""
    return [
        Outgoing(
            topics.verdicts,
            str(verdict.transfer_id).encode(),
            encode_verdict(verdict),
            transfer_headers(verdict.transfer_id),
        )
        for verdict in verdicts
    ]
