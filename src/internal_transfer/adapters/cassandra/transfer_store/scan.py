"""The scan's view of the agenda: it leases what is due, and finishes what a process that stopped has left half done."""

from collections.abc import Sequence

from msgspec.structs import replace

from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda
from internal_transfer.adapters.cassandra.transfer_store.claims import Claims
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits
from internal_transfer.adapters.cassandra.transfer_store.recorder import share_of
from internal_transfer.adapters.cassandra.transfer_store.rows import Kept, Row
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import OPEN, Status, Transfer

GARBAGE_AFTER_MS = 600_000
"""A hint this long past that leads nowhere is removed; whoever wrote it has written it again, or given up."""

MOVE_BEYOND_MS = 10_000
"""A hint at a transfer that is due only this much later is moved there, so that it is not met at every scan."""


class Scan:
    """Leases, and repairs on the way."""

    def __init__(self, tables: Tables, *, due: Agenda, claims: Claims, limits: Limits) -> None:
        self._tables = tables
        self._due = due
        self._claims = claims
        self._limits = limits

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Takes due transfers, oldest first, bucket by bucket of the agenda."""
        leased: list[Transfer] = []
        for bucket in await self._due.buckets(now_ms):
            hints = await self._due.hints([bucket], now_ms)
            if not hints:
                if not await self._due.hints([bucket], 2**62, 1):
                    await self._due.retire(bucket, now_ms)
                continue
            due = await self._judge(hints, now_ms)
            due.sort(key=lambda kept: (kept.transfer.due_at, kept.transfer.id))
            wanted = due[: most - len(leased)]
            leased += await self._move(wanted, due_at=now_ms + lease_ms, place=now_ms + lease_ms)
            if len(leased) >= most:
                break
        return leased

    async def _judge(self, hints: Sequence[Row], now_ms: int) -> list[Kept]:
        """Which of the hints lead to due transfers; deals with all the others."""
        known = await self._tables.kept(hint[1] for hint in hints)
        due: list[Kept] = []
        later: list[Kept] = []
        ended: list[Row] = []
        failed: list[Kept] = []
        for hint in hints:
            kept = known.get(hint[1]) or await self._revive(hint)
            if kept is None or (kept.transfer.status in OPEN and kept.due_place != hint[0]):
                # A place that is not the transfer's may be one to which somebody is moving it right now.
                if hint[0] < now_ms - GARBAGE_AFTER_MS:
                    ended.append(hint)
            elif kept.transfer.status not in OPEN:
                ended.append(hint)
                if kept.transfer.status is Status.FAILED:
                    failed.append(kept)
            elif kept.transfer.due_at <= now_ms:
                due.append(kept)
            elif kept.transfer.due_at > now_ms + MOVE_BEYOND_MS:
                later.append(kept)
        if failed:
            await self._limits.give_back([share_of(kept) for kept in failed])
        await self._due.drop(ended)
        for kept in later:
            await self._move([kept], due_at=kept.transfer.due_at, place=kept.transfer.due_at)
        return due

    async def _revive(self, hint: Row) -> Kept | None:
        """Finishes the accept that the hint announced, if its key was claimed."""
        _, transfer_id, owner, key = hint
        claim = await self._claims.claim_of(owner, key)
        if claim is None or claim.transfer.id != transfer_id:
            return None
        [ended] = await self._claims.finish([claim])
        return ended if isinstance(ended, Kept) else None

    async def make_due(self, opened: Sequence[Kept], *, now_ms: int) -> int:
        """Makes these due where they are not yet; answers how many are open."""
        waiting = [kept for kept in opened if kept.transfer.due_at > now_ms]
        here = [kept for kept in waiting if kept.due_place <= now_ms]
        for kept in here:
            await self._move([kept], due_at=now_ms, place=kept.due_place)
        await self._move([kept for kept in waiting if kept.due_place > now_ms], due_at=now_ms, place=now_ms)
        return len(opened)

    async def _move(self, records: Sequence[Kept], *, due_at: int, place: int) -> list[Transfer]:
        """Sets the time at which transfers are due, and their place in the agenda; gives those that nobody else
        moved.
        """
        if not records:
            return []
        tables = self._tables
        await self._due.place(
            [
                (place, kept.transfer.id, kept.transfer.owner, kept.transfer.key)
                for kept in records
                if kept.due_place != place
            ]
        )
        name = tables.next_writer()
        applied = await tables.cql.decide(
            [
                tables.bind(
                    cql_text.LEASE_TRANSFER,
                    due_at,
                    place,
                    name,
                    kept.transfer.id,
                    kept.transfer.revision,
                    kept.transfer.due_at,
                    kept.due_place,
                )
                for kept in records
            ]
        )
        moved: list[Transfer] = []
        left: list[tuple[int, TransferId]] = []
        for kept, is_done in zip(records, applied, strict=True):
            tables.forget(kept.transfer.id)
            if not is_done:
                [rows] = await tables.cql.read([tables.bind(cql_text.SELECT_LEASED_BY, kept.transfer.id)])
                if not rows or rows[0][0] != name:
                    continue
            moved.append(replace(kept.transfer, due_at=due_at))
            if kept.due_place != place:
                left.append((kept.due_place, kept.transfer.id))
        await self._due.drop(left)
        return moved
