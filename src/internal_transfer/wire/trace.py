"""The trace of a transfer: one W3C trace context for everything that happens to it, in every process.

It is derived from the transfer's id, so nothing has to be handed on, and messages that are sent again after a crash
belong to the same trace.
"""

from hashlib import blake2b

from internal_transfer.domain.identifier import TransferId

CONTENT_TYPE = "application/json"
TRACEPARENT = "traceparent"
REQUEST_ID = "request-id"


def traceparent(transfer_id: TransferId) -> str:
    """The value of the `traceparent` header (W3C Trace Context, version 00), under the transfer's root span."""
    digest = blake2b(transfer_id.to_bytes(8, "big"), digest_size=24, person=b"trace").hexdigest()
    return f"00-{digest[:32]}-{digest[32:]}-01"
