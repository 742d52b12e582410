"""How the CQL transfer store's rows are read and written: by position, in the order of the columns."""

from typing import Any

import msgspec
from cassandra.query import UNSET_VALUE  # type: ignore[import-untyped]
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Account
from internal_transfer.domain.transfer import OPEN, Transfer
from internal_transfer.ports.transfer_fields import (
    CODE,
    DECISION,
    NEED,
    STATUS,
    asked_core,
    legs_of,
    legs_text,
)

Row = tuple[Any, ...]

_TRANSFER = msgspec.json.Decoder(Transfer)
_ENCODER = msgspec.json.Encoder()


class Kept(Struct, frozen=True):
    """A transfer as it is on record, with what the store itself keeps beside it; see `tables.cql`."""

    transfer: Transfer
    accept_number: int
    claim_attempt: int
    due_place: int
    asked_core: str | None
    asked_since: int | None
    writer: str


def first(transfer: Transfer, accept_number: int, claim_attempt: int, writer: str) -> Kept:
    """The record of a transfer that is accepted now."""
    core = asked_core(transfer)
    since = None if core is None else transfer.updated_at
    return Kept(transfer, accept_number, claim_attempt, transfer.due_at, core, since, writer)


def following(before: Kept, after: Transfer, writer: str) -> Kept:
    """The record after a change. A core that was owing an answer before owes it since then."""
    core = asked_core(after)
    since: int | None = None
    if core is not None:
        since = before.asked_since if core == before.asked_core else after.updated_at
    transfer = replace(after, revision=before.transfer.revision + 1)
    place = min(before.due_place, after.due_at) if after.status in OPEN else before.due_place
    return Kept(transfer, before.accept_number, before.claim_attempt, place, core, since, writer)


def body_of(transfer: Transfer) -> str:
    """A whole transfer as a claim carries it."""
    return _ENCODER.encode(transfer).decode()


def transfer_of_body(body: str) -> Transfer:
    """The transfer in a claim."""
    return _TRANSFER.decode(body)


def changing_values(kept: Kept, before: Kept | None) -> Row:
    """The values of `CHANGING_COLUMNS`. What was null and stays null is not written, so that it leaves no tombstone."""
    transfer = kept.transfer
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
        kept.due_place,
        _sparse(kept.asked_core, before and before.asked_core),
        _sparse(kept.asked_since, before and before.asked_since),
        kept.writer,
    )


def _sparse(value: Any, old: Any) -> Any:
    return UNSET_VALUE if value is None and old is None else value


def lasting_values(kept: Kept) -> Row:
    """The values of `LASTING_COLUMNS`."""
    transfer = kept.transfer
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
        kept.accept_number,
        kept.claim_attempt,
    )


def kept_of(row: Row) -> Kept:
    """The record in a row of the id, `CHANGING_COLUMNS` and `LASTING_COLUMNS`."""
    decision, failure, need, asset = row[9], row[10], row[11], row[25]
    transfer = Transfer(
        id=row[0],
        legs=legs_of(row[1]),
        updated_at=row[2],
        due_at=row[3],
        status=STATUS[row[4]],
        version=row[5],
        revision=row[6],
        attempts=row[7],
        fencing=row[8],
        decision=None if decision is None else DECISION[decision],
        failure=None if failure is None else CODE[failure],
        needs_person=None if need is None else NEED[need],
        post_attempt=row[12],
        void_attempt=row[13],
        ledger_timestamp=row[14],
        owner=row[19],
        key=row[20],
        source=Account(row[21], row[22], asset),
        target=Account(row[23], row[24], asset),
        amount=row[26],
        memo=row[27],
        created_at=row[28],
    )
    return Kept(transfer, row[29], row[30], row[15], row[16], row[17], row[18])
