"""How the CQL transfer store reads and writes the rows of transfers: by position, in the order of the columns."""

from typing import Any

import msgspec
from cassandra.query import UNSET_VALUE  # type: ignore[import-untyped]
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.requests import Row
from internal_transfer.domain.transfer import OPEN, Transfer
from internal_transfer.ports.transfer_fields import asked_core, legs_text, read_transfer

_TRANSFER = msgspec.json.Decoder(Transfer)
_ENCODER = msgspec.json.Encoder()


class Record(Struct, frozen=True):
    """A transfer on record, with the columns that only the store uses; see `tables.cql`."""

    transfer: Transfer
    accept_number: int
    claim_attempt: int
    due_place: int
    asked_core: str | None
    asked_since: int | None
    writer: str


def first(transfer: Transfer, accept_number: int, claim_attempt: int, writer: str) -> Record:
    """The record of a transfer that is being accepted."""
    core = asked_core(transfer)
    since = None if core is None else transfer.updated_at
    return Record(transfer, accept_number, claim_attempt, transfer.due_at, core, since, writer)


def following(before: Record, after: Transfer, writer: str) -> Record:
    """The record after a change; keeps the time since when the same core owes an answer."""
    core = asked_core(after)
    since: int | None = None
    if core is not None:
        since = before.asked_since if core == before.asked_core else after.updated_at
    transfer = replace(after, revision=before.transfer.revision + 1)
    place = min(before.due_place, after.due_at) if after.status in OPEN else before.due_place
    return Record(transfer, before.accept_number, before.claim_attempt, place, core, since, writer)


def body_of(transfer: Transfer) -> str:
    """The whole transfer as text, for a claim."""
    return _ENCODER.encode(transfer).decode()


def transfer_of_body(body: str) -> Transfer:
    """The transfer in a claim."""
    return _TRANSFER.decode(body)


def changing_values(record: Record, before: Record | None) -> Row:
    """The values of `CHANGING_COLUMNS`. A null that was null before is not written, since it would be a tombstone."""
    transfer = record.transfer
    old = None if before is None else before.transfer
    return (
        legs_text(transfer.legs),
        transfer.updated_at,
        transfer.due_at,
        transfer.status.value,
        transfer.version,
        transfer.revision,
        transfer.attempts,
        transfer.fencing,
        _sparse(transfer.decision, old and old.decision),
        _sparse(transfer.failure, old and old.failure),
        _sparse(transfer.needs_person, old and old.needs_person),
        transfer.post_attempt,
        transfer.void_attempt,
        transfer.ledger_timestamp,
        record.due_place,
        _sparse(record.asked_core, before and before.asked_core),
        _sparse(record.asked_since, before and before.asked_since),
        record.writer,
    )


def _sparse(value: Any, old: Any) -> Any:
    return UNSET_VALUE if value is None and old is None else value


def lasting_values(record: Record) -> Row:
    """The values of `LASTING_COLUMNS`."""
    transfer = record.transfer
    return (
        transfer.owner,
        transfer.key,
        transfer.source.owner,
        transfer.source.type,
        transfer.target.owner,
        transfer.target.type,
        transfer.source.asset,
        transfer.amount,
        _sparse(transfer.memo, None),
        transfer.created_at,
        record.accept_number,
        record.claim_attempt,
    )


def record_of(row: Row) -> Record:
    """The record in a row of `RECORD_COLUMNS`."""
    return Record(read_transfer(row, row[8]), *row[25:])
