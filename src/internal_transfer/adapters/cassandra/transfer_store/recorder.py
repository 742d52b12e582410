"""Changes of transfers: each is one conditional write in the transfer's partition, with its event if the status
changed.

Hints go before it: the marker for the feed, the final list, an earlier place in the agenda. What follows a final
state (giving a failed one's share back, taking it off the agenda) is done at once, or by the scan, which meets the
transfer on the agenda until both are done.
"""

from collections.abc import Sequence

import structlog
from msgspec import Struct

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import Agenda
from internal_transfer.adapters.cassandra.transfer_store.feed import Feed
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits, Share
from internal_transfer.adapters.cassandra.transfer_store.lists import placing_final
from internal_transfer.adapters.cassandra.transfer_store.registry import Registry
from internal_transfer.adapters.cassandra.transfer_store.rows import Kept, changing_values, following
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import OPEN, Status, Transfer, check_change
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable
from internal_transfer.ports.transfer_store import Change

_ROUNDS_MAX = 10
_HINTS_GOOD_SECONDS = 30.0
"""A process that stood still for longer writes its hints again, since somebody may have tidied them away."""

_log = structlog.get_logger(__name__)


class Step(Struct, frozen=True):
    """One change to be written: its place in the batch, and the record before and after it."""

    place: int
    before: Kept
    after: Kept


class Recorder:
    """Writes changes."""

    def __init__(self, tables: Tables, *, due: Agenda, feed: Feed, limits: Limits, registry: Registry) -> None:
        self._tables = tables
        self._due = due
        self._feed = feed
        self._limits = limits
        self._registry = registry

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Records changes; see the port. Those of one transfer follow each other, all others go side by side."""
        waves = self._waves(changes, await self._known(changes))
        recorded: list[Transfer | None] = [None] * len(changes)
        lost: set[TransferId] = set()
        for number, wave in enumerate(waves):
            steps = [step for step in wave if step.after.transfer.id not in lost]
            try:
                written = await self._write(steps)
            except Unavailable as error:
                if number:
                    raise OutcomeUnknown(error.system, error.message) from error
                raise
            for step, kept in zip(steps, written, strict=True):
                if kept is None:
                    lost.add(step.after.transfer.id)
                else:
                    recorded[step.place] = kept.transfer
        return recorded

    async def _known(self, changes: Sequence[Change]) -> dict[TransferId, Kept]:
        known: dict[TransferId, Kept] = {}
        unread: list[TransferId] = []
        for change in changes:
            transfer_id = change.after.id
            kept = self._tables.remembered(transfer_id, change.revision)
            if kept is not None:
                known.setdefault(transfer_id, kept)
            elif transfer_id not in known:
                unread.append(transfer_id)
        return known | await self._tables.kept(each for each in unread if each not in known)

    def _waves(self, changes: Sequence[Change], known: dict[TransferId, Kept]) -> list[list[Step]]:
        """The changes as steps from what is known; the n-th wave has the n-th change of each transfer."""
        latest = dict(known)
        depth: dict[TransferId, int] = {}
        waves: list[list[Step]] = []
        writer = self._tables.next_writer()
        for place, change in enumerate(changes):
            transfer_id = change.after.id
            before = latest.get(transfer_id)
            if before is None or before.transfer.revision != change.revision:
                continue
            check_change(before.transfer, change.after)
            after = following(before, change.after, f"{writer}-{place}")
            level = depth.get(transfer_id, 0)
            depth[transfer_id] = level + 1
            if level == len(waves):
                waves.append([])
            waves[level].append(Step(place, before, after))
            latest[transfer_id] = after
        return waves

    async def _write(self, steps: list[Step]) -> list[Kept | None]:
        """Writes one change each of several transfers. Raises `Unavailable` only where nothing was written."""
        if not steps:
            return []
        tables = self._tables
        hinted_at = tables.cql.clock.monotonic()
        try:
            await self._hint(steps)
        except OutcomeUnknown as error:
            raise Unavailable(error.system, error.message) from error
        ends = await tables.cql.decide_each([self._request(step) for step in steps])
        written: list[Kept | None] = []
        try:
            for step, end in zip(steps, ends, strict=True):
                written.append(step.after if end.applied else await self._look_again(step, doubted=end.doubted))
            if tables.cql.clock.monotonic() - hinted_at > _HINTS_GOOD_SECONDS:
                await self._hint(steps)
        except Unavailable as error:
            raise OutcomeUnknown(error.system, error.message) from error
        for step, kept in zip(steps, written, strict=True):
            if kept is not None and kept.transfer.status in OPEN:
                tables.remember(kept)
            else:
                tables.forget(step.after.transfer.id)
        await self._follow_up([(step, kept) for step, kept in zip(steps, written, strict=True) if kept is not None])
        return written

    async def _hint(self, steps: Sequence[Step]) -> None:
        changed = [step for step in steps if step.after.transfer.version != step.before.transfer.version]
        markers = self._feed.markers([(step.after.transfer.id, step.after.transfer.version) for step in changed])
        earlier = [
            (step.after.due_place, step.after.transfer.id, step.after.transfer.owner, step.after.transfer.key)
            for step in steps
            if step.after.due_place != step.before.due_place
        ]
        requests = self._feed.agenda.placing(markers) + self._due.placing(earlier)
        requests += placing_final(
            self._tables, [s.after.transfer for s in changed if s.after.transfer.status not in OPEN]
        )
        newest = max(step.after.transfer.ledger_timestamp for step in steps)
        await self._tables.cql.write([*requests, *self._registry.seeing_ledger(newest)])
        self._registry.ledger_is_seen(newest)
        await self._feed.agenda.add_buckets(markers)
        await self._due.add_buckets(earlier)

    def _request(self, step: Step) -> Request:
        after, before = step.after.transfer, step.before.transfer
        values = changing_values(step.after, step.before)
        condition = (before.revision, step.before.due_place)
        if after.version == before.version:
            return self._tables.bind(cql_text.UPDATE_TRANSFER, *values, after.id, *condition)
        code = None if after.failure is None else after.failure.value
        event = (after.status.value, after.updated_at, code)
        return self._tables.bind(cql_text.ADVANCE_TRANSFER, *values, *event, after.id, after.version, *condition)

    async def _look_again(self, step: Step, *, doubted: bool) -> Kept | None:
        """What became of a change that was told as not applied: it was, or the transfer was leased, or it is lost.

        Raises `OutcomeUnknown` where the change was in doubt and somebody has gone on since: from it, or past it.
        """
        tables, wanted = self._tables, step.after
        transfer_id = wanted.transfer.id
        before = step.before
        for _ in range(_ROUNDS_MAX):
            now = await tables.settled(transfer_id)
            if doubted and now is not None and now.transfer.revision > wanted.transfer.revision:
                raise OutcomeUnknown(tables.cql.system, f"transfer {transfer_id} was changed again before it was read")
            if now is None or now.transfer.revision > wanted.transfer.revision:
                return None
            if now.transfer.revision == wanted.transfer.revision:
                return wanted if now.writer == wanted.writer else None
            if now.transfer.revision != before.transfer.revision:
                return None
            # Only its place in the agenda was moved, which is no revision.
            wanted = following(now, step.after.transfer, step.after.writer)
            again = Step(step.place, now, wanted)
            await self._hint([again])
            [end] = await tables.cql.decide_each([self._request(again)])
            if end.applied:
                return wanted
            doubted = doubted or end.doubted
        raise OutcomeUnknown(tables.cql.system, f"too many processes change transfer {transfer_id} at once")

    async def _follow_up(self, written: Sequence[tuple[Step, Kept]]) -> None:
        failed = [kept for _, kept in written if kept.transfer.status is Status.FAILED]
        final = [kept for _, kept in written if kept.transfer.status not in OPEN]
        moved = [step.before for step, kept in written if kept.due_place != step.before.due_place]
        try:
            if failed:
                await self._limits.give_back([share_of(kept) for kept in failed])
            await self._due.drop([(kept.due_place, kept.transfer.id) for kept in [*final, *moved]])
        except OperatingFailureError as error:
            _log.warning("left_to_the_scan", error=str(error), transfers=len(written))


def share_of(kept: Kept) -> Share:
    """The share of its day that a transfer on record has."""
    return Share(kept.transfer, kept.claim_attempt, 0, fresh=False)
