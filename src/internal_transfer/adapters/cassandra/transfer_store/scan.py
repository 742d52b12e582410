"""The scan of the agenda: leases due transfers, and finishes what a process that stopped has left unfinished."""

from collections.abc import Sequence

from msgspec.structs import replace

from internal_transfer.adapters.cassandra.requests import Row
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda, due_hint
from internal_transfer.adapters.cassandra.transfer_store.claims import Claims
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits
from internal_transfer.adapters.cassandra.transfer_store.recorder import share_of
from internal_transfer.adapters.cassandra.transfer_store.rows import Record
from internal_transfer.adapters.cassandra.transfer_store.tables import EVERYTHING, Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import OPEN, Status, Transfer

UNUSED_AFTER_MS = 600_000
"""A hint that is this long past and leads to no transfer is removed: its writer has written another, or given up."""

MOVE_BEYOND_MS = 10_000
"""A hint at a transfer that is due more than this later is moved there, so that not every scan meets it."""


class Scan:
    """Scans the agenda."""

    def __init__(self, tables: Tables, *, due: Agenda, claims: Claims, limits: Limits) -> None:
        self._tables = tables
        self._due = due
        self._claims = claims
        self._limits = limits

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Leases due transfers, oldest first within a bucket, and buckets from the oldest on."""
        leased: list[Transfer] = []
        for bucket in await self._due.buckets(now_ms):
            hints = await self._due.read([bucket], now_ms)
            if not hints:
                if not await self._due.read([bucket], EVERYTHING, 1):
                    await self._due.retire(bucket, now_ms)
                continue
            due = await self._due_of(hints, now_ms)
            due.sort(key=lambda record: (record.transfer.due_at, record.transfer.id))
            wanted = due[: most - len(leased)]
            leased += await self._move(wanted, due_at=now_ms + lease_ms, place=now_ms + lease_ms)
            if len(leased) >= most:
                break
        return leased

    async def _due_of(self, hints: Sequence[Row], now_ms: int) -> list[Record]:
        """Returns the due transfers to which hints lead; removes or moves the other hints."""
        known = await self._tables.records(hint[1] for hint in hints)
        due: list[Record] = []
        later: list[Record] = []
        ended: list[Row] = []
        failed: list[Record] = []
        for hint in hints:
            record = known.get(hint[1]) or await self._revive(hint)
            if record is None or (record.transfer.status in OPEN and record.due_place != hint[0]):
                # The transfer has another place, but another process may be moving it to this one.
                if hint[0] < now_ms - UNUSED_AFTER_MS:
                    ended.append(hint)
            elif record.transfer.status not in OPEN:
                ended.append(hint)
                if record.transfer.status is Status.FAILED:
                    failed.append(record)
            elif record.transfer.due_at <= now_ms:
                due.append(record)
            elif record.transfer.due_at > now_ms + MOVE_BEYOND_MS:
                later.append(record)
        if failed:
            await self._limits.give_back([share_of(record) for record in failed])
        await self._due.remove(ended)
        for record in later:
            await self._move([record], due_at=record.transfer.due_at, place=record.transfer.due_at)
        return due

    async def _revive(self, hint: Row) -> Record | None:
        """Finishes the accept that the hint points at, if its key was claimed."""
        _, transfer_id, owner, key = hint
        claim = await self._claims.claim_of(owner, key)
        if claim is None or claim.transfer.id != transfer_id:
            return None
        [ended] = await self._claims.finish([claim])
        return ended if isinstance(ended, Record) else None

    async def make_due(self, opened: Sequence[Record], *, now_ms: int) -> int:
        """Makes open transfers due that are not due yet; returns how many are open."""
        waiting = [record for record in opened if record.transfer.due_at > now_ms]
        here = [record for record in waiting if record.due_place <= now_ms]
        for record in here:
            await self._move([record], due_at=now_ms, place=record.due_place)
        await self._move([record for record in waiting if record.due_place > now_ms], due_at=now_ms, place=now_ms)
        return len(opened)

    async def _move(self, records: Sequence[Record], *, due_at: int, place: int) -> list[Transfer]:
        """Sets the time at which transfers are due, and their place in the agenda.

        Returns the transfers for which this call did it, and no other process.
        """
        if not records:
            return []
        tables = self._tables
        await self._due.add([due_hint(place, record.transfer) for record in records if record.due_place != place])
        name = tables.next_writer()
        applied = await tables.cql.decide(
            [
                tables.bind(
                    cql_text.LEASE_TRANSFER,
                    due_at,
                    place,
                    name,
                    record.transfer.id,
                    record.transfer.revision,
                    record.transfer.due_at,
                    record.due_place,
                )
                for record in records
            ]
        )
        moved: list[Transfer] = []
        left: list[tuple[int, TransferId]] = []
        for record, is_done in zip(records, applied, strict=True):
            tables.forget(record.transfer.id)
            if not is_done:
                [rows] = await tables.cql.read([tables.bind(cql_text.SELECT_LEASED_BY, record.transfer.id)])
                if not rows or rows[0][0] != name:
                    continue
            moved.append(replace(record.transfer, due_at=due_at))
            if record.due_place != place:
                left.append((record.due_place, record.transfer.id))
        await self._due.remove(left)
        return moved
