"""How the embedded transfer store's rows are read and written: by position, in the order of the columns."""

from functools import lru_cache
from typing import Any

import msgspec

from internal_transfer.domain.account import Account
from internal_transfer.domain.leg import Leg, LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import OPEN, Decision, Need, Status, Transfer
from internal_transfer.ports.transfer_store import Event

Row = tuple[Any, ...]
"""A row of the database or the values bound to a statement."""

_STATUS = {status.value: status for status in Status}
_CODE = {code.value: code for code in Code}
_NEED = {need.value: need for need in Need}
_DECISION = {decision.value: decision for decision in Decision}
_ENCODER = msgspec.json.Encoder()
_LEGS = msgspec.json.Decoder(tuple[Leg, ...])
_OWED = frozenset({LegState.ASKED, LegState.REVERSING})


def blob(units: int) -> bytes:
    """An amount or sum as it is stored; raises `OverflowError` from 2^128 on and below 0."""
    return units.to_bytes(16, "big")


def units_of(stored: bytes) -> int:
    """The amount or sum in a stored blob."""
    return int.from_bytes(stored, "big")


def status_of(stored: str) -> Status:
    """The status in a stored text."""
    return _STATUS[stored]


@lru_cache(maxsize=1024)
def _legs_of(stored: str) -> tuple[Leg, ...]:
    return _LEGS.decode(stored)


def _asked_core(transfer: Transfer) -> str | None:
    """The core that owes an answer. Until persons have decided what they have to, nothing is sent and nothing owed."""
    if transfer.status in OPEN and (transfer.needs_person is None or transfer.decision is not None):
        for leg in transfer.legs:
            if leg.state in _OWED:
                return leg.core
    return None


def changing_values(transfer: Transfer) -> Row:
    """The values of a transfer that a change may write, and its id."""
    return (
        _ENCODER.encode(transfer.legs).decode() if transfer.legs else "[]",
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
        _asked_core(transfer),
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
        legs=_legs_of(row[11]),
        updated_at=row[12],
        due_at=row[13],
        status=_STATUS[row[14]],
        version=row[15],
        revision=row[16],
        attempts=row[17],
        fencing=row[18] != 0,
        decision=None if decision is None else _DECISION[decision],
        failure=None if failure is None else _CODE[failure],
        needs_person=None if need is None else _NEED[need],
        post_attempt=row[22],
        void_attempt=row[23],
        ledger_timestamp=row[24],
    )


def event_of(row: Row) -> Event:
    """The event in a row of transfer id, version, status, time, code."""
    code = row[4]
    return Event(row[0], row[1], _STATUS[row[2]], row[3], None if code is None else _CODE[code])
