"""The prepared statements of the CQL transfer store, and the calls that several of its parts make."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from cassandra.query import BoundStatement, PreparedStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.requests import Request, Row
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.rows import Record, record_of
from internal_transfer.domain.identifier import TransferId
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown

_Result = TypeVar("_Result")

IDS_PER_READ = 20
"""How many partitions one read asks for; the coordinator asks their replicas in parallel."""

STATEMENTS_PER_BATCH = 50
"""Cassandra refuses batches of more than 50 KiB."""

EVERYTHING = 2**62
"""More than every place, number and time."""

_REMEMBERED_MAX = 20_000


class Tables:
    """The store's tables, behind their prepared statements, and the records that this process wrote last.

    The names of this process's writes start with a prefix that no other process has.
    """

    def __init__(self, cql: Cql, prepared: dict[str, PreparedStatement]) -> None:
        self.cql = cql
        self._prepared = prepared
        self._remembered: dict[TransferId, Record] = {}
        self._writer = f"{int(cql.clock.jitter() * 2**52):013x}"
        self._writes = 0

    def bind(self, text: str, *values: Any) -> BoundStatement:
        """Binds values to a statement."""
        return self._prepared[text].bind(values)

    def next_writer(self) -> str:
        """A name for one write, which no other write has."""
        self._writes += 1
        return f"{self._writer}-{self._writes:x}"

    def in_batches(self, statements: Iterable[tuple[Any, BoundStatement]]) -> list[Request]:
        """Combines statements, each given with the name of its partition, into as few requests as possible."""
        groups: dict[Any, list[BoundStatement]] = {}
        for partition, statement in statements:
            groups.setdefault(partition, []).append(statement)
        return [
            self.cql.batch(group[start : start + STATEMENTS_PER_BATCH])
            for group in groups.values()
            for start in range(0, len(group), STATEMENTS_PER_BATCH)
        ]

    async def records(self, transfer_ids: Iterable[TransferId]) -> dict[TransferId, Record]:
        """Reads the records of these transfers, as far as they exist."""
        rows = await self.by_ids(cql_text.SELECT_RECORD, cql_text.SELECT_RECORDS, list(dict.fromkeys(transfer_ids)))
        return {row[0]: record_of(row) for row in rows}

    async def by_ids(self, one: str, many: str, transfer_ids: Sequence[TransferId]) -> list[Row]:
        """Reads the rows of transfers, with statement `one` for a single id and `many` for several."""
        if not transfer_ids:
            return []
        requests: list[Request] = []
        for start in range(0, len(transfer_ids), IDS_PER_READ):
            chunk = list(transfer_ids[start : start + IDS_PER_READ])
            requests.append(self.bind(one, chunk[0]) if len(chunk) == 1 else self.bind(many, chunk))
        return [row for rows in await self.cql.read(requests) for row in rows]

    async def settled(self, transfer_id: TransferId) -> Record | None:
        """Reads the record of a transfer serially, which settles a change in doubt."""
        read = self.cql.serially(self.bind(cql_text.SELECT_RECORD, transfer_id))
        [rows] = await self.cql.read([read])
        return record_of(rows[0]) if rows else None

    def remember(self, record: Record) -> None:
        """Remembers a record that this process wrote, so that the next change need not read it."""
        remembered = self._remembered
        remembered.pop(record.transfer.id, None)
        if len(remembered) >= _REMEMBERED_MAX:
            del remembered[next(iter(remembered))]
        remembered[record.transfer.id] = record

    def forget(self, transfer_id: TransferId) -> None:
        """Forgets the record of a transfer that another process has changed, or that is final."""
        self._remembered.pop(transfer_id, None)

    def remembered(self, transfer_id: TransferId, revision: int) -> Record | None:
        """The record of a revision if this process wrote it; only `due_at` of a revision can change."""
        record = self._remembered.get(transfer_id)
        return record if record is not None and record.transfer.revision == revision else None


async def together(calls: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Makes calls side by side, lets all of them end, and then raises the worst failure.

    The worst is an exception that is no operating failure, then `OutcomeUnknown`.
    """
    if len(calls) == 1:
        return [await calls[0]]
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(
        failures, key=lambda each: (isinstance(each, OperatingFailureError), not isinstance(each, OutcomeUnknown))
    ):
        raise failure
    return [result for result in results if not isinstance(result, BaseException)]
