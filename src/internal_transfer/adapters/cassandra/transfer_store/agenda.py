"""Hints about what has to be looked at, in buckets of time.

A hint is written before that which it hints at, and removed after it is dealt with, so whoever reads the agenda
misses nothing; a hint without its reason does no harm. Hints lie in small partitions (a bucket of time and a
shard), since a partition from which rows are removed all the time gets slow to read. Which buckets have hints is on
record too: a bucket is added after its first hint and removed when it is empty and has been past for long; the
remover looks once more afterwards.
"""

from collections.abc import Iterable

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.rows import Row
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables

ROWS_MAX = 20_000
"""The most that is read of one bucket and shard at once; what is beyond is seen when those before it are done."""


class Agenda:
    """One kind of hints: tuples of place (a time in ms), transfer id, and what else the table has.

    `named` is the number of fields after the place and before what is no part of the primary key.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        name: str,
        insert: str,
        select: str,
        delete: str,
        named: int,
        width_ms: int,
        shards: int,
        kept_buckets: int,
    ) -> None:
        self._tables = tables
        self._name = name
        self._insert = insert
        self._select = select
        self._delete = delete
        self._named = named
        self._width_ms = width_ms
        self._shards = shards
        self._kept_buckets = kept_buckets
        self._known: set[int] = set()
        self._newest = 0

    def placing(self, hints: Iterable[Row]) -> list[Request]:
        """The requests that write hints; `add_buckets` has to follow before anything rests on them."""
        bind, insert = self._tables.bind, self._insert
        statements = []
        for hint in hints:
            partition = (hint[0] // self._width_ms, hint[1] % self._shards)
            statements.append((partition, bind(insert, *partition, *hint)))
        return self._tables.in_batches(statements)

    async def add_buckets(self, hints: Iterable[Row]) -> None:
        """Puts the hints' buckets on record, where they may not be.

        A bucket much older than the newest may have been removed by somebody since this process added it.
        """
        safe = self._newest - self._kept_buckets // 2
        buckets = {hint[0] // self._width_ms for hint in hints}
        missing = [bucket for bucket in buckets if bucket not in self._known or bucket < safe]
        if not missing:
            return
        await self._tables.cql.decide(
            [self._tables.bind(cql_text.ADD_BUCKET, self._name, bucket) for bucket in missing]
        )
        self._newest = max(self._newest, *missing)
        safe = self._newest - self._kept_buckets // 2
        self._known = {bucket for bucket in self._known.union(missing) if bucket >= safe}

    async def place(self, hints: list[Row]) -> None:
        """Writes hints; when it returns, every reader sees them."""
        await self._tables.cql.write(self.placing(hints))
        await self.add_buckets(hints)

    async def drop(self, hints: Iterable[Row]) -> None:
        """Removes hints."""
        bind, delete, named = self._tables.bind, self._delete, self._named
        statements = []
        for hint in hints:
            partition = (hint[0] // self._width_ms, hint[1] % self._shards)
            statements.append((partition, bind(delete, *partition, *hint[: 1 + named])))
        await self._tables.cql.write(self._tables.in_batches(statements))

    async def buckets(self, until: int) -> list[int]:
        """The buckets on record that may have hints up to a place, oldest first."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_BUCKETS, self._name)])
        last = until // self._width_ms
        return [row[0] for row in rows if row[0] <= last]

    async def hints(self, buckets: Iterable[int], until: int, most: int = ROWS_MAX) -> list[Row]:
        """The hints in some buckets up to a place, by rising place."""
        requests = [
            self._tables.bind(self._select, bucket, shard, until, most)
            for bucket in buckets
            for shard in range(self._shards)
        ]
        return sorted(row for rows in await self._tables.cql.read(requests) for row in rows)

    async def retire(self, bucket: int, now_ms: int) -> None:
        """Takes an empty bucket off the record if it is long past."""
        if bucket >= now_ms // self._width_ms - self._kept_buckets:
            return
        self._known.discard(bucket)
        await self._tables.cql.decide([self._tables.bind(cql_text.DROP_BUCKET, self._name, bucket)])
        if await self.hints([bucket], 2**62, 1):
            await self._tables.cql.decide([self._tables.bind(cql_text.ADD_BUCKET, self._name, bucket)])
