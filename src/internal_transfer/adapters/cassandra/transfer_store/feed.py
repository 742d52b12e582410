"""The feed: every event once, numbered in an order that readers can follow.

A transition and its event are one conditional write in the transfer's partition; a marker is written before it.
Whoever reads the feed first numbers what is new: one conditional batch appends events to the feed's bucket if its
end has not moved since it was read, so two processes can do this side by side and nothing is appended twice.
Afterwards each event is told its number, and the marker goes. Events that were appended last may not know their
number yet if the process died; `settled` says from where on, and whoever appends next tells them first.
"""

import asyncio
from collections.abc import Iterable

from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda
from internal_transfer.adapters.cassandra.transfer_store.rows import Row
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.ports.transfer_fields import read_event
from internal_transfer.ports.transfer_store import Event

BUCKET_EVENTS = 10_000
"""How many events one partition of the feed has; never changes once there is a feed."""

EVENTS_PER_BATCH = 150
"""How many events are appended at once; Cassandra refuses batches of more than 50 KiB, and these are under 20."""

_MARKERS_PER_READ = 500
_ROUNDS_MAX = 50
_OLD_MARKER_MS = 60_000
"""After this long, whoever wrote a marker has given up, so that a settling read can tell that its event will not
come."""


class Feed:
    """The feed and its markers."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock = asyncio.Lock()
        self._bucket: int | None = None
        self.agenda = Agenda(
            tables,
            name="feed_marker",
            insert=cql_text.INSERT_MARKER,
            select=cql_text.SELECT_MARKERS,
            delete=cql_text.DELETE_MARKER,
            named=2,
            width_ms=10_000,
            shards=2,
            kept_buckets=12,
        )

    def markers(self, events: Iterable[tuple[TransferId, int]]) -> list[Row]:
        """The hints to be written before these (transfer id, version) come about."""
        now = self._tables.cql.clock.now_ms()
        return [(now, transfer_id, version) for transfer_id, version in events]

    async def read(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events above a number, after everything new was numbered; see the port."""
        async with self._lock:
            await self._number()
        events: list[tuple[int, Event]] = []
        while len(events) < most:
            bucket = after // BUCKET_EVENTS
            rows = await self._rows(bucket, after, EVERYTHING, most - len(events))
            events += [(row[5], read_event(row)) for row in rows]
            if not rows or rows[-1][5] != (bucket + 1) * BUCKET_EVENTS:
                break
            after = rows[-1][5]
        return events

    async def _rows(self, bucket: int, after: int, until: int, most: int) -> list[Row]:
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_FEED, bucket, after, until, most)])
        return rows

    async def _number(self) -> None:
        """Appends what the markers point at, and takes away those that are done with."""
        for _ in range(_ROUNDS_MAX):
            buckets = await self.agenda.buckets(EVERYTHING)
            markers = await self.agenda.hints(buckets, EVERYTHING, _MARKERS_PER_READ)
            now_ms = self._tables.cql.clock.now_ms()
            held = {marker[0] // 10_000 for marker in markers}
            for bucket in buckets:
                if bucket not in held:
                    await self.agenda.retire(bucket, now_ms)
            if not markers or not await self._append(markers, now_ms):
                return

    async def _append(self, markers: list[Row], now_ms: int) -> bool:
        """Appends some of what is new; tells whether there may be more."""
        tables = self._tables
        bucket, last, just_appended = await self._end()
        start = last if last is not None else bucket * BUCKET_EVENTS
        rows = await tables.by_ids(
            cql_text.SELECT_EVENTS_ONE, cql_text.SELECT_EVENTS, list(dict.fromkeys(marker[1] for marker in markers))
        )
        existing = {(row[0], row[1]) for row in rows}
        new = sorted(
            (row for row in rows if row[5] is None and (row[0], row[1]) not in just_appended),
            key=lambda row: (row[3], row[0], row[1]),
        )
        new = _by_version(new)
        end = (bucket + 1) * BUCKET_EVENTS
        appended = 0
        while appended < len(new) and start < end:
            chosen = new[appended : appended + min(end - start, EVENTS_PER_BATCH)]
            batch = [tables.bind(cql_text.MOVE_FEED, start + len(chosen), start, bucket, last)]
            numbered = list(enumerate(chosen, start + 1))
            batch += [tables.bind(cql_text.INSERT_FEED, bucket, number, *row[:5]) for number, row in numbered]
            if not (await tables.cql.decide([tables.cql.batch(batch)]))[0]:
                return True
            # All of these know their numbers before the next ones are appended; that is what `settled` says.
            await self._tell((number, row[0], row[1]) for number, row in numbered)
            appended += len(chosen)
            start = last = start + len(chosen)
        waiting = {(row[0], row[1]) for row in new[appended:]}
        await self.agenda.drop(
            marker for marker in markers if (key := (marker[1], marker[2])) in existing and key not in waiting
        )
        revived = await self._judge_old([m for m in markers if (m[1], m[2]) not in existing], now_ms)
        return bool(waiting) or revived or (bool(new) and len(markers) >= _MARKERS_PER_READ)

    async def _judge_old(self, markers: list[Row], now_ms: int) -> bool:
        """Takes away markers whose event cannot come any more; tells whether one did come."""
        revived = False
        for marker in markers:
            if now_ms - marker[0] < _OLD_MARKER_MS:
                continue
            kept = await self._tables.settled(marker[1])
            if kept is not None and kept.transfer.version >= marker[2]:
                revived = True
            else:
                await self.agenda.drop([marker])
        return revived

    async def _tell(self, numbered: Iterable[tuple[int, int, int]]) -> None:
        """Tells events their numbers."""
        await self._tables.cql.write(
            self._tables.in_batches(
                (transfer_id, self._tables.bind(cql_text.NUMBER_EVENT, number, transfer_id, version))
                for number, transfer_id, version in numbered
            )
        )

    async def _end(self) -> tuple[int, int | None, set[tuple[int, int]]]:
        """The bucket that is being filled, its last number, and what was appended last; all of it knows its number."""
        if self._bucket is None:
            self._bucket = await self._newest_bucket()
        while True:
            bucket = self._bucket
            last, settled = await self._head(bucket)
            if last is None:
                return bucket, None, set()
            rows = await self._rows(bucket, settled or bucket * BUCKET_EVENTS, last, BUCKET_EVENTS)
            await self._tell((row[5], row[0], row[1]) for row in rows)
            if last < (bucket + 1) * BUCKET_EVENTS:
                return bucket, last, {(row[0], row[1]) for row in rows}
            self._bucket = bucket + 1

    async def _head(self, bucket: int) -> tuple[int | None, int | None]:
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_FEED_HEAD, bucket)])
        return rows[0] if rows else (None, None)

    async def _newest_bucket(self) -> int:
        """The last bucket that has events: found by doubling, then by halves."""
        low, high = 0, 1
        while (await self._head(high))[0] is not None:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if (await self._head(middle))[0] is not None:
                low = middle
            else:
                high = middle
        return low


def _by_version(rows: list[Row]) -> list[Row]:
    """The same rows with each transfer's by rising version, whatever their times say."""
    by_transfer: dict[int, list[Row]] = {}
    for row in rows:
        by_transfer.setdefault(row[0], []).append(row)
    for own in by_transfer.values():
        own.sort(key=lambda row: row[1], reverse=True)
    return [by_transfer[row[0]].pop() for row in rows]
