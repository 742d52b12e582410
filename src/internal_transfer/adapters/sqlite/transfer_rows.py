"""How the embedded transfer store's rows are read and written: by position, in the order of the columns."""

from typing import Any

from internal_transfer.domain.account import Account
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.transfer_fields import (
    CODE,
    DECISION,
    NEED,
    STATUS,
    asked_core,
    legs_of,
    legs_text,
)
from internal_transfer.ports.transfer_store import Event

Row = tuple[Any, ...]
"""A row of the database or the values bound to a statement."""


def blob(units: int) -> bytes:
    """An amount or sum as it is stored; raises `OverflowError` from 2^128 on and below 0."""
    return units.to_bytes(16, "big")


def units_of(stored: bytes) -> int:
    """The amount or sum in a stored blob."""
    return int.from_bytes(stored, "big")


def status_of(stored: str) -> Status:
    """The status in a stored text."""
    return STATUS[stored]


def changing_values(transfer: Transfer) -> Row:
    """The values of a transfer that a change may write, and its id."""
    return (
        legs_text(transfer.legs),
        transfer.updated_at,
        transfer.due_at,
        transfer.status,
        transfer.version,
        transfer.revision,
        transfer.attempts,
        transfer.fencing,
        transfer.decision,
        transfer.failure,
        transfer.needs_person,
        transfer.post_attempt,
        transfer.void_attempt,
        transfer.ledger_timestamp,
        asked_core(transfer),
        transfer.id,
    )


def lasting_values(transfer: Transfer, accept_number: int) -> Row:
    """The values of a transfer that are written once."""
    source, target = transfer.source, transfer.target
    return (
        accept_number,
        transfer.owner,
        transfer.key,
        source.owner,
        source.type,
        target.owner,
        target.type,
        source.asset,
        blob(transfer.amount),
        transfer.memo,
        transfer.created_at,
    )


def transfer_of(row: Row) -> Transfer:
    """The transfer in a row of `sqlite_statements.TRANSFER_COLUMNS`; more columns may follow."""
    asset, decision, failure, need = row[7], row[19], row[20], row[21]
    return Transfer(
        id=row[0],
        owner=row[1],
        key=row[2],
        source=Account(row[3], row[4], asset),
        target=Account(row[5], row[6], asset),
        amount=units_of(row[8]),
        memo=row[9],
        created_at=row[10],
        legs=legs_of(row[11]),
        updated_at=row[12],
        due_at=row[13],
        status=STATUS[row[14]],
        version=row[15],
        revision=row[16],
        attempts=row[17],
        fencing=row[18] != 0,
        decision=None if decision is None else DECISION[decision],
        failure=None if failure is None else CODE[failure],
        needs_person=None if need is None else NEED[need],
        post_attempt=row[22],
        void_attempt=row[23],
        ledger_timestamp=row[24],
    )


def event_of(row: Row) -> Event:
    """The event in a row of transfer id, version, status, time, code."""
    code = row[4]
    return Event(row[0], row[1], STATUS[row[2]], row[3], None if code is None else CODE[code])
