"""How the PostgreSQL store reads rows, by position, and writes a batch, as one array for each column."""

from collections.abc import Sequence
from typing import Any

import asyncpg

from internal_transfer.domain.identifier import day_of
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_fields import asked_core, legs_text, read_transfer
from internal_transfer.ports.transfer_store import DAILY_UNITS_MAX, Change, Proposal


def proposal_columns(proposals: Sequence[Proposal]) -> list[tuple[Any, ...]]:
    """The arguments of `accept_transfers`. Numbers that may exceed 64 bits are text."""
    rows = []
    for proposal in proposals:
        transfer = proposal.transfer
        source, target = transfer.source, transfer.target
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
                str(min(proposal.daily_units, DAILY_UNITS_MAX)),
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
    """The transfer in a row of `TRANSFER_COLUMNS`; more columns may follow."""
    return read_transfer(row, int(row[8]))
