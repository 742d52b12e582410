"""Hints: rows that say which transfers to look at, in buckets of time.

A hint is written before the change that it points at, and removed when that change has been dealt with. So a reader of
the hints misses nothing, and a hint at a change that never happened does no harm.

Hints lie in small partitions (a bucket of time and a shard), since a partition gets slow to read when rows are removed
from it all the time. A table lists the buckets that have hints: a bucket is listed after its first hint is written. It
is taken off the list when it is empty and long past, and listed again if it has a hint after all.
"""

from collections.abc import Iterable

from msgspec import Struct

from internal_transfer.adapters.cassandra.requests import Request, Row
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.transfer import Transfer

ROWS_MAX = 20_000
"""The most hints read from one bucket and shard at once; the rest is read when these have been removed."""

HINTS_GOOD_SECONDS = 30.0
"""A process that took longer between hint and change writes the hint again, since a reader may have removed it."""


class Hints(Struct, frozen=True):
    """A kind of hint: a tuple of place (a time in ms), transfer id, and the other columns of its table.

    `key_fields` is how many of these fields belong to the primary key. `buckets_kept` is how many buckets before the
    present one stay listed although they are empty.
    """

    name: str
    insert: str
    select: str
    delete: str
    key_fields: int
    width_ms: int
    shards: int
    buckets_kept: int


DUE = Hints(
    name="transfer_due",
    insert=cql_text.INSERT_DUE,
    select=cql_text.SELECT_DUE,
    delete=cql_text.DELETE_DUE,
    key_fields=2,
    width_ms=60_000,
    shards=4,
    buckets_kept=10,
)
MARKERS = Hints(
    name="feed_marker",
    insert=cql_text.INSERT_MARKER,
    select=cql_text.SELECT_MARKERS,
    delete=cql_text.DELETE_MARKER,
    key_fields=3,
    width_ms=10_000,
    shards=2,
    buckets_kept=12,
)


def due_hint(place: int, transfer: Transfer) -> Row:
    """The hint of kind `DUE` that says to look at a transfer at a time."""
    return place, transfer.id, transfer.owner, transfer.key


class Agenda:
    """The hints of one kind."""

    def __init__(self, tables: Tables, kind: Hints) -> None:
        self._tables = tables
        self._kind = kind
        self._listed: set[int] = set()
        self._newest = 0

    def insertions(self, hints: Iterable[Row]) -> list[Request]:
        """Returns the requests that write hints; call `list_buckets` afterwards, before relying on them."""
        return self._requests(self._kind.insert, hints)

    def _requests(self, text: str, hints: Iterable[Row]) -> list[Request]:
        bind, kind = self._tables.bind, self._kind
        statements = []
        for hint in hints:
            partition = (hint[0] // kind.width_ms, hint[1] % kind.shards)
            statements.append((partition, bind(text, *partition, *hint)))
        return self._tables.in_batches(statements)

    async def list_buckets(self, hints: Iterable[Row]) -> None:
        """Lists the buckets of these hints, unless this process knows that they are listed.

        Another process may have unlisted a bucket much older than the newest one, so that one is listed again.
        """
        kind = self._kind
        certain = self._newest - kind.buckets_kept // 2
        buckets = {hint[0] // kind.width_ms for hint in hints}
        missing = [bucket for bucket in buckets if bucket not in self._listed or bucket < certain]
        if not missing:
            return
        await self._tables.cql.decide([self._tables.bind(cql_text.ADD_BUCKET, kind.name, bucket) for bucket in missing])
        self._newest = max(self._newest, *missing)
        certain = self._newest - kind.buckets_kept // 2
        self._listed = {bucket for bucket in self._listed.union(missing) if bucket >= certain}

    async def add(self, hints: list[Row]) -> None:
        """Writes hints; when it returns, every reader sees them."""
        await self._tables.cql.write(self.insertions(hints))
        await self.list_buckets(hints)

    async def remove(self, hints: Iterable[Row]) -> None:
        """Removes hints; fields beyond the key may be missing."""
        kind = self._kind
        await self._tables.cql.write(self._requests(kind.delete, (hint[: kind.key_fields] for hint in hints)))

    async def buckets(self, until: int) -> list[int]:
        """The listed buckets that may have hints up to a place, oldest first."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_BUCKETS, self._kind.name)])
        last = until // self._kind.width_ms
        return [row[0] for row in rows if row[0] <= last]

    async def read(self, buckets: Iterable[int], until: int, most: int = ROWS_MAX) -> list[Row]:
        """The hints in some buckets up to a place, by rising place; at most `most` from each shard."""
        requests = [
            self._tables.bind(self._kind.select, bucket, shard, until, most)
            for bucket in buckets
            for shard in range(self._kind.shards)
        ]
        return sorted(row for rows in await self._tables.cql.read(requests) for row in rows)

    async def retire(self, bucket: int, now_ms: int) -> None:
        """Unlists an empty bucket if it is long past."""
        kind = self._kind
        if bucket >= now_ms // kind.width_ms - kind.buckets_kept:
            return
        self._listed.discard(bucket)
        await self._tables.cql.decide([self._tables.bind(cql_text.DROP_BUCKET, kind.name, bucket)])
        if await self.read([bucket], EVERYTHING, 1):
            await self._tables.cql.decide([self._tables.bind(cql_text.ADD_BUCKET, kind.name, bucket)])
