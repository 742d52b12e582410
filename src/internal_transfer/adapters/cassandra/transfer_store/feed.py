"""The feed: every event once, with a sequence number, and the positions of its readers.

A change of status and its event are one conditional write in the transfer's partition; a marker is written before it.
A read of the feed first numbers the new events. One conditional batch appends them to the feed's bucket, if no other
process has appended since the end was read, so nothing is appended twice. Afterwards each event gets its number in
the transfer's partition, and the marker is removed. If a process stops in between, the events appended last have no
number there; `settled` says up to where they have one, and the next process to append writes the missing numbers first.
"""

import asyncio
from collections.abc import Iterable

from internal_transfer.adapters.cassandra.requests import Row
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import MARKERS, Agenda
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.ports.transfer_fields import read_event
from internal_transfer.ports.transfer_store import Event

BUCKET_EVENTS = 10_000
"""How many events one partition of the feed has; never changes once an event is numbered."""

EVENTS_PER_BATCH = 150
"""How many events are appended at once; Cassandra refuses batches of more than 50 KiB, and these are under 20."""

_MARKERS_PER_READ = 500
_ROUNDS_MAX = 50
_OLD_MARKER_MS = 60_000
"""After this time the writer of a marker has given up, so a serial read decides whether its event exists."""


class Feed:
    """The feed, its markers, and the positions of its readers."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock = asyncio.Lock()
        self._bucket: int | None = None
        self.agenda = Agenda(tables, MARKERS)

    def markers(self, events: Iterable[tuple[TransferId, int]]) -> list[Row]:
        """The markers to write before events of these (transfer id, version) are written."""
        now = self._tables.cql.clock.now_ms()
        return [(now, transfer_id, version) for transfer_id, version in events]

    async def read(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events above a sequence number; numbers the new ones first. See the port."""
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

    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader has read; 0 for a new one."""
        read = self._tables.bind(cql_text.SELECT_READER, reader)
        [rows] = await self._tables.cql.read([self._tables.cql.serially(read)])
        return rows[0][0] if rows else 0

    async def move_reader(self, reader: str, position: int) -> None:
        """Moves a reader's position forward, never back."""
        decide, bind = self._tables.cql.decide, self._tables.bind
        if not (await decide([bind(cql_text.MOVE_READER, position, reader, position)]))[0]:
            await decide([bind(cql_text.ADD_READER, reader, position)])
            await decide([bind(cql_text.MOVE_READER, position, reader, position)])

    async def _number(self) -> None:
        """Appends the events that markers point at, and removes the markers of events that have their number."""
        for _ in range(_ROUNDS_MAX):
            buckets = await self.agenda.buckets(EVERYTHING)
            markers = await self.agenda.read(buckets, EVERYTHING, _MARKERS_PER_READ)
            now_ms = self._tables.cql.clock.now_ms()
            filled = {marker[0] // MARKERS.width_ms for marker in markers}
            for bucket in buckets:
                if bucket not in filled:
                    await self.agenda.retire(bucket, now_ms)
            if not markers or not await self._append(markers, now_ms):
                return

    async def _append(self, markers: list[Row], now_ms: int) -> bool:
        """Appends new events; tells whether there may be more."""
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
            # The next batch says with `settled` that these have their numbers.
            await self._write_numbers((number, row[0], row[1]) for number, row in numbered)
            appended += len(chosen)
            start = last = start + len(chosen)
        waiting = {(row[0], row[1]) for row in new[appended:]}
        await self.agenda.remove(
            marker for marker in markers if (key := (marker[1], marker[2])) in existing and key not in waiting
        )
        revived = await self._end_old([m for m in markers if (m[1], m[2]) not in existing], now_ms)
        return bool(waiting) or revived or (bool(new) and len(markers) >= _MARKERS_PER_READ)

    async def _end_old(self, markers: list[Row], now_ms: int) -> bool:
        """Removes old markers whose event does not exist; tells whether a serial read brought an event about."""
        revived = False
        for marker in markers:
            if now_ms - marker[0] < _OLD_MARKER_MS:
                continue
            record = await self._tables.settled(marker[1])
            if record is not None and record.transfer.version >= marker[2]:
                revived = True
            else:
                await self.agenda.remove([marker])
        return revived

    async def _write_numbers(self, numbered: Iterable[tuple[int, int, int]]) -> None:
        """Writes the numbers of events, each (number, transfer id, version), to the transfers' partitions."""
        await self._tables.cql.write(
            self._tables.in_batches(
                (transfer_id, self._tables.bind(cql_text.NUMBER_EVENT, number, transfer_id, version))
                for number, transfer_id, version in numbered
            )
        )

    async def _end(self) -> tuple[int, int | None, set[tuple[int, int]]]:
        """Returns the bucket that is being filled, its last number, and the events appended last.

        Writes the numbers of these to the transfers' partitions first.
        """
        if self._bucket is None:
            self._bucket = await self._newest_bucket()
        while True:
            bucket = self._bucket
            last, settled = await self._head(bucket)
            if last is None:
                return bucket, None, set()
            rows = await self._rows(bucket, settled or bucket * BUCKET_EVENTS, last, BUCKET_EVENTS)
            await self._write_numbers((row[5], row[0], row[1]) for row in rows)
            if last < (bucket + 1) * BUCKET_EVENTS:
                return bucket, last, {(row[0], row[1]) for row in rows}
            self._bucket = bucket + 1

    async def _head(self, bucket: int) -> tuple[int | None, int | None]:
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_FEED_HEAD, bucket)])
        return rows[0] if rows else (None, None)

    async def _newest_bucket(self) -> int:
        """Finds the last bucket that has events: doubles the number, then halves the distance."""
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
    """Reorders the events of each transfer by rising version, whatever their times; others keep their places."""
    by_transfer: dict[int, list[Row]] = {}
    for row in rows:
        by_transfer.setdefault(row[0], []).append(row)
    for own in by_transfer.values():
        own.sort(key=lambda row: row[1], reverse=True)
    return [by_transfer[row[0]].pop() for row in rows]
