"""Lists of transfers: open ones from the agenda, which has a hint at each of them, and final ones by id."""

from collections.abc import Iterable

from cassandra.query import BoundStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda
from internal_transfer.adapters.cassandra.transfer_store.rows import Record
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.identifier import TransferId, time_of
from internal_transfer.domain.transfer import OPEN, Status, Transfer
from internal_transfer.ports.transfer_store import OpenSummary

FINAL_SHARDS = 4
"""How many partitions the final transfers of one status and hour have; never changes once there are any."""

_HOUR_MS = 3_600_000
_HOURS_PER_READ = 50


def insertions_of_final(tables: Tables, transfers: Iterable[Transfer]) -> list[Request]:
    """Returns the requests that put transfers on the list of their final status."""
    statements: list[tuple[object, BoundStatement]] = []
    for transfer in transfers:
        hour = time_of(transfer.id) // _HOUR_MS
        partition = (transfer.status.value, hour, transfer.id % FINAL_SHARDS)
        statements.append((partition, tables.bind(cql_text.INSERT_FINAL, *partition, transfer.id)))
        statements.append((transfer.status, tables.bind(cql_text.INSERT_FINAL_HOUR, transfer.status.value, hour)))
    return tables.in_batches(statements)


class Lists:
    """Reads the lists; the partition of a transfer decides whether it belongs there."""

    def __init__(self, tables: Tables, *, due: Agenda) -> None:
        self._tables = tables
        self._due = due

    async def open(self) -> list[Record]:
        """Reads every open transfer."""
        hints = await self._due.read(await self._due.buckets(EVERYTHING), EVERYTHING)
        known = await self._tables.records(hint[1] for hint in hints)
        return [record for record in known.values() if record.transfer.status in OPEN]

    async def by_status(self, status: Status, *, after: TransferId, most: int) -> list[Transfer]:
        """Transfers in a status, by rising id."""
        if status in OPEN:
            opened = [record.transfer for record in await self.open() if record.transfer.status is status]
            return sorted((each for each in opened if each.id > after), key=lambda each: each.id)[:most]
        found: list[Transfer] = []
        hour = time_of(after) // _HOUR_MS
        while len(found) < most:
            [hours] = await self._tables.cql.read(
                [self._tables.bind(cql_text.SELECT_FINAL_HOURS, status.value, hour, _HOURS_PER_READ)]
            )
            for (each,) in hours:
                found += await self._final(status, each, after, most - len(found))
                if len(found) >= most:
                    break
            if len(hours) < _HOURS_PER_READ:
                break
            hour = hours[-1][0] + 1
        return found

    async def _final(self, status: Status, hour: int, after: TransferId, most: int) -> list[Transfer]:
        found: list[Transfer] = []
        while True:
            wanted = most - len(found)
            answers = await self._tables.cql.read(
                [
                    self._tables.bind(cql_text.SELECT_FINAL, status.value, hour, shard, after, wanted)
                    for shard in range(FINAL_SHARDS)
                ]
            )
            ids = sorted(row[0] for rows in answers for row in rows)[:wanted]
            known = await self._tables.records(ids)
            found += [known[each].transfer for each in ids if each in known and known[each].transfer.status is status]
            if len(ids) < wanted or len(found) >= most:
                return found
            # Some are on the list for a change to this status that was not made.
            after = ids[-1]

    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that were created before this time or need a person, oldest first."""
        stuck = [
            record.transfer
            for record in await self.open()
            if record.transfer.created_at < open_before_ms or record.transfer.needs_person is not None
        ]
        return sorted(stuck, key=lambda each: (each.created_at, each.id))[:most]

    async def summary(self) -> OpenSummary:
        """A summary of the open transfers."""
        summary = OpenSummary()
        for record in await self.open():
            transfer = record.transfer
            need = None if transfer.needs_person is None else transfer.needs_person.value
            summary.count(transfer.status, need, 1, transfer.created_at)
            if record.asked_core is not None and record.asked_since is not None:
                summary.count_asked(record.asked_core, record.asked_since)
        return summary
