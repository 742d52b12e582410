"""How the fields of a transfer are stored and read back.

It stands with the port because all stores write the same texts, and adapters may not import each other.
"""

from functools import lru_cache
from typing import Any, Protocol

import msgspec

from internal_transfer.domain.account import Account
from internal_transfer.domain.leg import Leg, LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import OPEN, Decision, Need, Status, Transfer
from internal_transfer.ports.transfer_store import Event

TRANSFER_COLUMNS = (
    "id, owner, key, source_owner, source_type, target_owner, target_type, asset, amount, memo, created_at, legs, "
    "updated_at, due_at, status, version, revision, attempts, fencing, decision, failure, needs_person, post_attempt, "
    "void_attempt, ledger_timestamp"
)
"""The columns of a SQL store's transfer, in the order in which `read_transfer` expects them."""

STATUS = {status.value: status for status in Status}
CODE = {code.value: code for code in Code}
NEED = {need.value: need for need in Need}
DECISION = {decision.value: decision for decision in Decision}

_ENCODER = msgspec.json.Encoder()
_LEGS = msgspec.json.Decoder(tuple[Leg, ...])
_OWED = frozenset({LegState.ASKED, LegState.REVERSING})


class Row(Protocol):
    """A row of any database, read by position."""

    def __getitem__(self, position: int, /) -> Any:
        """The value of one column."""
        ...


def legs_text(legs: tuple[Leg, ...]) -> str:
    """Returns the text that stores these legs."""
    return _ENCODER.encode(legs).decode() if legs else "[]"


@lru_cache(maxsize=1024)
def legs_of(stored: str) -> tuple[Leg, ...]:
    """Reads the legs from their stored text."""
    return _LEGS.decode(stored)


def read_transfer(row: Row, amount: int) -> Transfer:
    """Reads a transfer from a row of `TRANSFER_COLUMNS`, which more columns may follow.

    The caller reads the amount, since each database writes numbers of this size in a way of its own.
    """
    asset, decision, failure, need = row[7], row[19], row[20], row[21]
    return Transfer(
        id=row[0],
        owner=row[1],
        key=row[2],
        source=Account(row[3], row[4], asset),
        target=Account(row[5], row[6], asset),
        amount=amount,
        memo=row[9],
        created_at=row[10],
        legs=legs_of(row[11]),
        updated_at=row[12],
        due_at=row[13],
        status=STATUS[row[14]],
        version=row[15],
        revision=row[16],
        attempts=row[17],
        fencing=bool(row[18]),
        decision=None if decision is None else DECISION[decision],
        failure=None if failure is None else CODE[failure],
        needs_person=None if need is None else NEED[need],
        post_attempt=row[22],
        void_attempt=row[23],
        ledger_timestamp=row[24],
    )


def read_event(row: Row) -> Event:
    """Reads an event from a row of transfer id, version, status, time and code, which more columns may follow."""
    code = row[4]
    return Event(row[0], row[1], STATUS[row[2]], row[3], None if code is None else CODE[code])


def asked_core(transfer: Transfer) -> str | None:
    """Returns the core that owes an answer, if any; none does while the transfer waits for a decision by people."""
    if transfer.status in OPEN and (transfer.needs_person is None or transfer.decision is not None):
        for leg in transfer.legs:
            if leg.state in _OWED:
                return leg.core
    return None
