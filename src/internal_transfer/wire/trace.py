"""The trace of a transfer: one name for all that happens to it, in every process, without handing anything on.

The W3C trace context is derived from the transfer's id, so that whoever knows the id knows the trace, and messages that
are sent again after a crash belong to the same one.
"""

from hashlib import blake2b

from internal_transfer.domain.identifier import TransferId

CONTENT_TYPE = "application/json"
TRACEPARENT = "traceparent"
REQUEST_ID = "request-id"


def trace_id(transfer_id: TransferId) -> str:
    """The trace's id: 32 hexadecimal digits."""
    return _digest(transfer_id)[:32]


def traceparent(transfer_id: TransferId) -> str:
    """The value of the `traceparent` header (W3C Trace Context, version 00), under the transfer's root span."""
    digest = _digest(transfer_id)
    return f"00-{digest[:32]}-{digest[32:]}-01"


def _digest(transfer_id: TransferId) -> str:
    return blake2b(transfer_id.to_bytes(8, "big"), digest_size=24, person=b"trace").hexdigest()
