"""The messages that tell other programs about the events of transfers; see `core_messages` for the rules."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.event_publisher import TransferEvent
from internal_transfer.wire.core_messages import (
    AmountText,
    AssetText,
    Milliseconds,
    OwnerText,
    TransferIdText,
    UndecodableError,
    WireAccount,
    decode_strictly,
)


class TransferEventMessage(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="transfer_event/1"
):
    """A transfer has changed its status. `version` counts a transfer's events from 1 without gaps.

    At least once and in order per transfer: drop the (transfer_id, version) that you have seen. `code` says why a
    transfer failed. `owner` asked for it; `amount` is in the asset's smallest units.
    """

    transfer_id: TransferIdText
    version: Annotated[int, Meta(ge=1)]
    status: Status
    at: Milliseconds
    code: Code | None
    owner: OwnerText
    source: WireAccount
    target: WireAccount
    asset: AssetText
    amount: AmountText


class _Other(Struct, tag_field="type", tag="none"):
    """Only a union makes msgspec ask for the type."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(TransferEventMessage | _Other)


def encode_transfer_event(published: TransferEvent) -> bytes:
    """The bytes of an event."""
    event, transfer = published.event, published.transfer
    return _encoder.encode(
        TransferEventMessage(
            transfer_id=str(event.transfer_id),
            version=event.version,
            status=event.status,
            at=event.at,
            code=event.code,
            owner=transfer.owner,
            source=WireAccount(transfer.source.owner, transfer.source.type),
            target=WireAccount(transfer.target.owner, transfer.target.type),
            asset=transfer.source.asset,
            amount=str(transfer.amount),
        )
    )


def decode_transfer_event(data: bytes) -> TransferEventMessage:
    """The event that the bytes are; raises `UndecodableError`."""
    message = decode_strictly(_decoder, data)
    if not isinstance(message, TransferEventMessage):
        raise UndecodableError("not an event of a transfer - at `$.type`")
    return message
