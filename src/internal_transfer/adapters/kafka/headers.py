"""The headers of every message about a transfer."""

from internal_transfer.domain.identifier import TransferId
from internal_transfer.wire.trace import CONTENT_TYPE, REQUEST_ID, TRACEPARENT, traceparent

_CONTENT_TYPE: tuple[str, str | bytes | None] = ("content-type", CONTENT_TYPE.encode())


def transfer_headers(transfer_id: TransferId) -> list[tuple[str, str | bytes | None]]:
    """Content type, request id (the transfer's) and trace context."""
    return [
        _CONTENT_TYPE,
        (REQUEST_ID, str(transfer_id).encode()),
        (TRACEPARENT, traceparent(transfer_id).encode()),
    ]


def plain_headers() -> list[tuple[str, str | bytes | None]]:
    """The headers of a message that is about no one transfer."""
    return [_CONTENT_TYPE]
