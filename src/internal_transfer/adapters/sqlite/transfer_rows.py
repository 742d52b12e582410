"""How the embedded transfer store's rows are written and read: by position, in the order of the columns."""

from typing import Any

from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_fields import asked_core, legs_text, read_transfer

Row = tuple[Any, ...]
"""A row of the database, or the values bound to a statement."""


def blob(units: int) -> bytes:
    """An amount or sum as it is stored; raises `OverflowError` from 2^128 on and below 0."""
    return units.to_bytes(16, "big")


def units_of(stored: bytes) -> int:
    """The amount or sum in a stored blob."""
    return int.from_bytes(stored, "big")


def changing_values(transfer: Transfer) -> Row:
    """The values of a transfer that a change may write, and then its id."""
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
    """The values of a transfer that are written once and never change."""
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
    """The transfer in a row of `TRANSFER_COLUMNS`; more columns may follow."""
    return read_transfer(row, int.from_bytes(row[8]))
