"""How the PostgreSQL store reads rows, by position, and writes a batch, as one array for each column."""

from collections.abc import Sequence
from typing import Any

import asyncpg

from internal_transfer.domain.account import Account
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import day_of
from internal_transfer.domain.leg import LegState
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
from internal_transfer.ports.transfer_store import Change, Event, Proposal

SUM_MAX = 2**128 - 1
"""The largest daily sum, as in every store."""


def proposal_columns(proposals: Sequence[Proposal]) -> list[tuple[Any, ...]]:
    """The arguments of `accept_transfers`. Numbers that may exceed 64 bits are text."""
    rows = []
    for proposal in proposals:
        transfer = proposal.transfer
        source, target = transfer.source, transfer.target
        assert transfer.status is Status.REQUESTING, "only a requested transfer is accepted"
        assert transfer.version == transfer.revision == 1, "an accepted transfer has no past"
        assert 0 < transfer.amount <= AMOUNT_UNITS_MAX, "the amount is out of range"
        assert source.asset == target.asset, "a transfer is of one asset"
        assert all(leg.state is LegState.NOT_ASKED for leg in transfer.legs), "nobody was asked before the record"
        rows.append(
            (
                transfer.id,
                transfer.owner,
                transfer.key,
                proposal.fingerprint,
                source.owner,
                source.type,
                target.owner,
                target.type,
                source.asset,
                str(transfer.amount),
                transfer.memo,
                transfer.created_at,
                day_of(transfer.id),
                legs_text(transfer.legs),
                transfer.updated_at,
                transfer.due_at,
                str(min(proposal.daily_units, SUM_MAX)),
            )
        )
    return list(zip(*rows, strict=True))


def change_columns(changes: Sequence[Change]) -> list[tuple[Any, ...]]:
    """The arguments of `record_transfers`, without the last one."""
    rows = []
    for change in changes:
        after = change.after
        rows.append(
            (
                after.id,
                change.revision,
                legs_text(after.legs),
                after.updated_at,
                after.due_at,
                after.status,
                after.version,
                after.attempts,
                after.fencing,
                after.decision,
                after.failure,
                after.needs_person,
                after.post_attempt,
                after.void_attempt,
                after.ledger_timestamp,
                asked_core(after),
            )
        )
    return list(zip(*rows, strict=True))


def transfer_of(row: asyncpg.Record) -> Transfer:
    """The transfer in a row of `postgresql_statements.TRANSFER_COLUMNS`; more columns may follow."""
    asset, decision, failure, need = row[7], row[19], row[20], row[21]
    return Transfer(
        id=row[0],
        owner=row[1],
        key=row[2],
        source=Account(row[3], row[4], asset),
        target=Account(row[5], row[6], asset),
        amount=int(row[8]),
        memo=row[9],
        created_at=row[10],
        legs=legs_of(row[11]),
        updated_at=row[12],
        due_at=row[13],
        status=STATUS[row[14]],
        version=row[15],
        revision=row[16],
        attempts=row[17],
        fencing=row[18],
        decision=None if decision is None else DECISION[decision],
        failure=None if failure is None else CODE[failure],
        needs_person=None if need is None else NEED[need],
        post_attempt=row[22],
        void_attempt=row[23],
        ledger_timestamp=row[24],
    )


def event_of(row: asyncpg.Record) -> Event:
    """The event in a row of transfer id, version, status, time, code."""
    code = row[4]
    return Event(row[0], row[1], STATUS[row[2]], row[3], None if code is None else CODE[code])
