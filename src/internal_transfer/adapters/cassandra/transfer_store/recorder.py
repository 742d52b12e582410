"""Records changes of transfers: each is one conditional write in the transfer's partition, with its event if any.

Hints are written before it: the marker for the feed, the list of final transfers, an earlier place in the agenda. What
follows a final status (giving back a failed transfer's share, removing it from the agenda) is done at once or, if that
fails, by the scan, which meets the transfer in the agenda until both are done.
"""

from collections.abc import Sequence

import structlog
from msgspec import Struct

from internal_transfer.adapters.cassandra.failures import maybe_recorded, nothing_recorded
from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import HINTS_GOOD_SECONDS, Agenda, due_hint
from internal_transfer.adapters.cassandra.transfer_store.feed import Feed
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits, Share
from internal_transfer.adapters.cassandra.transfer_store.lists import insertions_of_final
from internal_transfer.adapters.cassandra.transfer_store.rows import Record, changing_values, following
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import OPEN, Status, Transfer, check_change
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable
from internal_transfer.ports.transfer_store import Change

_ROUNDS_MAX = 10
_NANOSECONDS_PER_WRITE_TIME = 1_000
"""The ledger's timestamps are nanoseconds, and the time of a write is microseconds. Of two marks written at the same
microsecond the larger value wins."""

_log = structlog.get_logger(__name__)


class Step(Struct, frozen=True):
    """One change to write: its place in the batch, and the record before and after it."""

    place: int
    before: Record
    after: Record


class Recorder:
    """Records changes, and the largest ledger timestamp in them."""

    def __init__(self, tables: Tables, *, due: Agenda, feed: Feed, limits: Limits) -> None:
        self._tables = tables
        self._due = due
        self._feed = feed
        self._limits = limits
        self._ledger_mark = 0

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp on record."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_LEDGER_SEEN)])
        return (rows[0][0] or 0) if rows else 0

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
            for step, record in zip(steps, written, strict=True):
                if record is None:
                    lost.add(step.after.transfer.id)
                else:
                    recorded[step.place] = record.transfer
        return recorded

    async def _known(self, changes: Sequence[Change]) -> dict[TransferId, Record]:
        known: dict[TransferId, Record] = {}
        unread: list[TransferId] = []
        for change in changes:
            transfer_id = change.after.id
            record = self._tables.remembered(transfer_id, change.revision)
            if record is not None:
                known.setdefault(transfer_id, record)
            elif transfer_id not in known:
                unread.append(transfer_id)
        return known | await self._tables.records(each for each in unread if each not in known)

    def _waves(self, changes: Sequence[Change], known: dict[TransferId, Record]) -> list[list[Step]]:
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

    async def _write(self, steps: list[Step]) -> list[Record | None]:
        """Writes one change to each of several transfers. Raises `Unavailable` only if nothing was written."""
        if not steps:
            return []
        tables = self._tables
        hinted_at = tables.cql.clock.monotonic()
        with nothing_recorded():
            await self._hint(steps)
        ends = await tables.cql.decide_each([self._request(step) for step in steps])
        with maybe_recorded():
            written = [
                step.after if end.applied else await self._look_again(step, doubted=end.doubted)
                for step, end in zip(steps, ends, strict=True)
            ]
            if tables.cql.clock.monotonic() - hinted_at > HINTS_GOOD_SECONDS:
                await self._hint(steps)
        for step, record in zip(steps, written, strict=True):
            if record is not None and record.transfer.status in OPEN:
                tables.remember(record)
            else:
                tables.forget(step.after.transfer.id)
        await self._follow_up([(step, record) for step, record in zip(steps, written, strict=True) if record])
        return written

    async def _hint(self, steps: Sequence[Step]) -> None:
        changed = [step for step in steps if step.after.transfer.version != step.before.transfer.version]
        markers = self._feed.markers([(step.after.transfer.id, step.after.transfer.version) for step in changed])
        earlier = [
            due_hint(step.after.due_place, step.after.transfer)
            for step in steps
            if step.after.due_place != step.before.due_place
        ]
        final = [step.after.transfer for step in changed if step.after.transfer.status not in OPEN]
        requests = self._feed.agenda.insertions(markers) + self._due.insertions(earlier)
        requests += insertions_of_final(self._tables, final)
        newest = max(step.after.transfer.ledger_timestamp for step in steps)
        if newest > self._ledger_mark:
            time = newest // _NANOSECONDS_PER_WRITE_TIME
            requests.append(self._tables.bind(cql_text.RAISE_LEDGER_SEEN, time, newest))
        await self._tables.cql.write(requests)
        self._ledger_mark = max(self._ledger_mark, newest)
        await self._feed.agenda.list_buckets(markers)
        await self._due.list_buckets(earlier)

    def _request(self, step: Step) -> Request:
        after, before = step.after.transfer, step.before.transfer
        values = changing_values(step.after, step.before)
        condition = (before.revision, step.before.due_place)
        if after.version == before.version:
            return self._tables.bind(cql_text.UPDATE_TRANSFER, *values, after.id, *condition)
        code = None if after.failure is None else after.failure.value
        event = (after.status.value, after.updated_at, code)
        return self._tables.bind(cql_text.ADVANCE_TRANSFER, *values, *event, after.id, after.version, *condition)

    async def _look_again(self, step: Step, *, doubted: bool) -> Record | None:
        """Finds out what became of a change that was not applied; returns its record, or None if it is lost.

        An earlier attempt may have been applied, or only the transfer's place in the agenda has changed; then the
        change is written again. Raises `OutcomeUnknown` if an attempt is in doubt and there is a later revision,
        which may or may not follow from this change.
        """
        tables, wanted, before = self._tables, step.after, step.before
        transfer_id = wanted.transfer.id
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
            # Only the place in the agenda was changed, which makes no new revision.
            wanted = following(now, step.after.transfer, step.after.writer)
            again = Step(step.place, now, wanted)
            await self._hint([again])
            [end] = await tables.cql.decide_each([self._request(again)])
            if end.applied:
                return wanted
            doubted = doubted or end.doubted
        raise OutcomeUnknown(tables.cql.system, f"too many processes change transfer {transfer_id} at once")

    async def _follow_up(self, written: Sequence[tuple[Step, Record]]) -> None:
        failed = [record for _, record in written if record.transfer.status is Status.FAILED]
        final = [record for _, record in written if record.transfer.status not in OPEN]
        moved = [step.before for step, record in written if record.due_place != step.before.due_place]
        try:
            if failed:
                await self._limits.give_back([share_of(record) for record in failed])
            await self._due.remove([(record.due_place, record.transfer.id) for record in [*final, *moved]])
        except OperatingFailureError as error:
            _log.warning("left_to_the_scan", error=str(error), transfers=len(written))


def share_of(record: Record) -> Share:
    """The share of its day that a transfer on record has taken."""
    return Share(record.transfer, record.claim_attempt, 0, fresh=False)
