"""The prepared statements, and what several parts of the CQL transfer store need of them."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from cassandra.query import BoundStatement, PreparedStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.rows import Kept, Row, kept_of
from internal_transfer.domain.identifier import TransferId
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown

_Result = TypeVar("_Result")

IDS_PER_READ = 20
"""How many partitions one read asks for; the coordinator asks their replicas side by side."""

STATEMENTS_PER_BATCH = 50
"""Cassandra refuses batches of more than 50 KiB."""

EVERYTHING = 2**62
"""Above every place, number and time."""

_REMEMBERED_MAX = 20_000


class Tables:
    """The store's tables behind their prepared statements, with the records that this process wrote last.

    `writer` starts the names of this process's writes; no two processes have the same.
    """

    def __init__(self, cql: Cql, prepared: dict[str, PreparedStatement]) -> None:
        self.cql = cql
        self._prepared = prepared
        self._remembered: dict[TransferId, Kept] = {}
        self._writer = f"{int(cql.clock.jitter() * 2**52):013x}"
        self._writes = 0

    def bind(self, text: str, *values: Any) -> BoundStatement:
        """A statement with its values."""
        return self._prepared[text].bind(values)

    def next_writer(self) -> str:
        """The name of one write, used once."""
        self._writes += 1
        return f"{self._writer}-{self._writes:x}"

    def in_batches(self, statements: Iterable[tuple[Any, BoundStatement]]) -> list[Request]:
        """Statements, each with what names its partition, as few requests."""
        groups: dict[Any, list[BoundStatement]] = {}
        for partition, statement in statements:
            groups.setdefault(partition, []).append(statement)
        return [
            self.cql.batch(group[start : start + STATEMENTS_PER_BATCH])
            for group in groups.values()
            for start in range(0, len(group), STATEMENTS_PER_BATCH)
        ]

    async def kept(self, transfer_ids: Iterable[TransferId]) -> dict[TransferId, Kept]:
        """The records of these transfers that exist, as they are on record now."""
        rows = await self.by_ids(cql_text.SELECT_KEPT_ONE, cql_text.SELECT_KEPT, list(dict.fromkeys(transfer_ids)))
        return {row[0]: kept_of(row) for row in rows}

    async def by_ids(self, one: str, many: str, transfer_ids: Sequence[TransferId]) -> list[Row]:
        """The rows of many partitions of `transfer`."""
        if not transfer_ids:
            return []
        requests: list[Request] = []
        for start in range(0, len(transfer_ids), IDS_PER_READ):
            chunk = list(transfer_ids[start : start + IDS_PER_READ])
            requests.append(self.bind(one, chunk[0]) if len(chunk) == 1 else self.bind(many, chunk))
        return [row for rows in await self.cql.read(requests) for row in rows]

    async def settled(self, transfer_id: TransferId) -> Kept | None:
        """The record of a transfer after everything in doubt about it was settled."""
        read = self.cql.serially(self.bind(cql_text.SELECT_KEPT_ONE, transfer_id))
        [rows] = await self.cql.read([read])
        return kept_of(rows[0]) if rows else None

    def remember(self, kept: Kept) -> None:
        """Keeps a record that this process wrote, so that its next change need not read it."""
        remembered = self._remembered
        remembered.pop(kept.transfer.id, None)
        if len(remembered) >= _REMEMBERED_MAX:
            del remembered[next(iter(remembered))]
        remembered[kept.transfer.id] = kept

    def forget(self, transfer_id: TransferId) -> None:
        """Drops what was remembered of a transfer that somebody else changed, or that is final."""
        self._remembered.pop(transfer_id, None)

    def remembered(self, transfer_id: TransferId, revision: int) -> Kept | None:
        """The record of this revision if this process wrote it; a revision's content never changes but for `due_at`."""
        kept = self._remembered.get(transfer_id)
        return kept if kept is not None and kept.transfer.revision == revision else None


async def together(works: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Does several things side by side, all to their end, and raises the gravest failure if there was one."""
    if len(works) == 1:
        return [await works[0]]
    results = await asyncio.gather(*works, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if not isinstance(failure, OperatingFailureError):
            raise failure
    for failure in sorted(failures, key=lambda each: not isinstance(each, OutcomeUnknown)):
        raise failure
    return [result for result in results if not isinstance(result, BaseException)]
