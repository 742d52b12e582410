"""An owner's history: accept numbers in partitions of one hour, and the hours that have any.

The upper bits of an accept number are the microsecond of the acceptance, which rises within a process; the lower 12
bits are of the process. The number is drawn, and its row written, before the key is claimed. So when a walk begins,
every transfer on record has its row, at a place that never changes, and the walk meets each exactly once. A row is
skipped if its transfer is not on record or has another number, because its id was proposed more than once. The order
is as exact as the machines' clocks.
"""

from collections.abc import Iterable

from cassandra.query import BoundStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.rows import Record
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import EPOCH_MS, TransferId
from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_store import HistoryPage, HistoryQuery

HISTORY_SCAN_MAX = 1_000
"""How many rows are read for one filtered page. A page that reaches this is short, and its cursor leads on."""

_PROCESS_BITS = 12
_HOUR = 3_600_000_000 << _PROCESS_BITS
_HOURS_PER_READ = 24
_HOURS_REMEMBERED_MAX = 50_000
_MOST_HOURS = 2**31 - 1


class History:
    """The history of owners."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._process = int(tables.cql.clock.jitter() * (1 << _PROCESS_BITS))
        self._tick = 0
        self._hours: set[tuple[Owner, int]] = set()

    def next_number(self) -> int:
        """Draws an accept number, above all that this process has drawn."""
        self._tick = max(self._tick + 1, (self._tables.cql.clock.now_ms() - EPOCH_MS) * 1000)
        return self._tick << _PROCESS_BITS | self._process

    def insertions(self, rows: Iterable[tuple[Owner, int, TransferId]]) -> list[Request]:
        """Returns the requests that write rows of owner, accept number and transfer id."""
        bind = self._tables.bind
        statements: list[tuple[object, BoundStatement]] = []
        for owner, number, transfer_id in rows:
            hour = number // _HOUR
            statements.append(((owner, hour), bind(cql_text.INSERT_HISTORY, owner, hour, number, transfer_id)))
            if (owner, hour) not in self._hours:
                if len(self._hours) >= _HOURS_REMEMBERED_MAX:
                    self._hours.clear()
                statements.append((owner, bind(cql_text.INSERT_HISTORY_HOUR, owner, hour)))
        return self._tables.in_batches(statements)

    def remember_hours(self, rows: Iterable[tuple[Owner, int, TransferId]]) -> None:
        """Remembers that the hours of these rows are written, so that they need not be written again."""
        self._hours.update((owner, number // _HOUR) for owner, number, _ in rows)

    async def remove(self, rows: Iterable[tuple[Owner, int]]) -> None:
        """Removes the rows of proposals that were not accepted."""
        await self._tables.cql.write(
            self._tables.in_batches(
                ((owner, number // _HOUR), self._tables.bind(cql_text.DELETE_HISTORY, owner, number // _HOUR, number))
                for owner, number in rows
            )
        )

    async def page(self, query: HistoryQuery) -> HistoryPage:
        """One page of an owner's transfers; see the port."""
        until = query.until if query.until is not None else await self._newest(query.owner)
        top = query.top(until)
        shown: list[Record] = []
        looked = 0
        while top > 0:
            numbers = await self._numbers(query.owner, top, 200 if looked else query.most + 1)
            if not numbers:
                break
            known = await self._tables.records([transfer_id for _, transfer_id in numbers])
            for number, transfer_id in numbers:
                record = known.get(transfer_id)
                top = number - 1
                looked += 1
                if record is None or record.accept_number != number or not _fits(record.transfer, query):
                    continue
                if len(shown) == query.most:
                    return HistoryPage([each.transfer for each in shown], until, shown[-1].accept_number)
                shown.append(record)
            if looked >= HISTORY_SCAN_MAX:
                return HistoryPage([each.transfer for each in shown], until, top + 1)
        return HistoryPage([each.transfer for each in shown], until, None)

    async def _newest(self, owner: Owner) -> int:
        numbers = await self._numbers(owner, EVERYTHING, 1)
        return numbers[0][0] if numbers else 0

    async def _numbers(self, owner: Owner, top: int, most: int) -> list[tuple[int, TransferId]]:
        """The newest accept numbers up to `top`, falling, with their transfer ids."""
        tables = self._tables
        found: list[tuple[int, TransferId]] = []
        hour = min(top // _HOUR, _MOST_HOURS)
        while len(found) < most:
            read = tables.bind(cql_text.SELECT_HISTORY_HOURS, owner, hour, _HOURS_PER_READ)
            [hours] = await tables.cql.read([read])
            if not hours:
                break
            # The newest hour usually fills the page of a busy owner; each hour of a quiet one has a row or two.
            for some in (hours[:1], hours[1:]):
                if some and len(found) < most:
                    requests = [tables.bind(cql_text.SELECT_HISTORY, owner, each[0], 1, top, most) for each in some]
                    for rows in await tables.cql.read(requests):
                        found += rows
            if len(hours) < _HOURS_PER_READ:
                break
            hour = hours[-1][0] - 1
        return found[:most]


def _fits(transfer: Transfer, query: HistoryQuery) -> bool:
    if query.statuses and transfer.status not in query.statuses:
        return False
    if query.asset is not None and transfer.source.asset != query.asset:
        return False
    if query.account_type is not None:
        goes_out = query.direction != "in" and transfer.source.type == query.account_type
        comes_in = query.direction != "out" and transfer.target.type == query.account_type
        if not goes_out and not comes_in:
            return False
    if query.from_ms is not None and transfer.created_at < query.from_ms:
        return False
    return query.to_ms is None or transfer.created_at < query.to_ms
