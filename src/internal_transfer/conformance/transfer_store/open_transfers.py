"""What the scanner and the operators ask for."""

import pytest
from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    FAILED,
    NOON,
    PENDING,
    REQUESTING,
    SUCCESS,
    WAYS,
    StoreTests,
    accepted,
    as_recorded,
    asked,
    changed,
    step,
    taken,
    transfer,
    with_state,
)
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.transfer import Decision, Need, Status
from internal_transfer.ports.transfer_store import Change, TransferStore


class OpenTransfers(StoreTests):
    """What the scanner and the operators ask for."""

    async def test_due_transfers_are_leased_once_and_oldest_first(self, harness: StoreHarness) -> None:
        """A leased transfer goes to nobody else until its lease ends; final and not yet due ones are never leased."""
        store = harness.store
        batch = await accepted(store, *[transfer(n, due_at=NOON + due) for n, due in enumerate((30, 10, 20, 40, 0))])
        await taken(store, batch[4], FAILED)
        leased = await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=2)
        assert leased == [replace(batch[n], due_at=NOON + 130) for n in (1, 2)]
        assert await store.get([batch[1].id]) == [leased[0]]
        assert [each.id for each in await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=5)] == [batch[0].id]
        assert await store.lease_due(now_ms=NOON + 30, lease_ms=100, most=5) == []
        await harness.reopen()
        again = await harness.store.lease_due(now_ms=NOON + 130, lease_ms=100, most=9)
        assert [each.id for each in again] == [batch[n].id for n in (3, 0, 1, 2)]

    async def test_a_lease_is_no_revision(self, store: TransferStore) -> None:
        """A caller that read a transfer before it was leased can still record its next state."""
        [first] = await accepted(store, transfer(due_at=NOON))
        [leased] = await store.lease_due(now_ms=NOON, lease_ms=50, most=1)
        assert leased.revision == first.revision
        [recorded] = await changed(store, step(first, PENDING, due_at=NOON + 10))
        assert [each.id for each in await store.lease_due(now_ms=NOON + 10, lease_ms=50, most=1)] == [recorded.id]

    async def test_a_restart_makes_all_open_transfers_due(self, harness: StoreHarness) -> None:
        """All open transfers become due, and only those; none that was due becomes due later."""
        batch = await accepted(harness.store, *[transfer(n, due_at=NOON + due) for n, due in enumerate((-5, 50, 60))])
        await taken(harness.store, batch[2], FAILED)
        await harness.reopen()
        assert await harness.store.make_due(now_ms=NOON) == 2
        assert [each.due_at for each in await as_recorded(harness.store, *batch[:2])] == [NOON - 5, NOON]
        leased = await harness.store.lease_due(now_ms=NOON, lease_ms=50, most=9)
        assert [each.id for each in leased] == [batch[0].id, batch[1].id]

    @pytest.mark.parametrize("status", list(Status))
    async def test_transfers_are_listed_by_status(self, harness: StoreHarness, status: Status) -> None:
        """Each status lists its transfers by rising id, page by page, in whatever order they were accepted."""
        expected = []
        for number in (8, 2, 6, 4):
            for offset, other in enumerate(Status):
                [each] = await accepted(harness.store, transfer(number * 10 + offset))
                each = await taken(harness.store, each, *WAYS[other])
                expected += [each] if other is status else []
        await harness.reopen()
        expected.sort(key=lambda each: each.id)
        assert await harness.store.by_status(status, after=None, most=3) == expected[:3]
        assert await harness.store.by_status(status, after=expected[2].id, most=3) == expected[3:]
        assert await harness.store.by_status(status, after=expected[3].id, most=3) == []

    async def test_stuck_transfers_are_old_or_need_a_person(self, store: TransferStore) -> None:
        """Open transfers that are old or need a person are listed, oldest first; final ones never are."""
        batch = await accepted(store, *[transfer(n, created_at=NOON + at) for n, at in enumerate((50, 10, 90, 20, 95))])
        await store.record([Change(1, replace(batch[2], needs_person=Need.HOLD_COLLISION))])
        await taken(store, batch[3], PENDING, SUCCESS)
        stuck = await store.stuck(open_before_ms=NOON + 50, most=9)
        assert [each.id for each in stuck] == [batch[1].id, batch[2].id]
        assert stuck[1].needs_person is Need.HOLD_COLLISION
        assert [each.id for each in await store.stuck(open_before_ms=NOON + 51, most=2)] == [batch[1].id, batch[0].id]

    async def test_the_summary_counts_what_is_open(self, harness: StoreHarness) -> None:
        """Counts, ages and reasons cover open transfers only; both open statuses are always named."""
        empty = await harness.store.open_summary()
        assert (empty.by_status, empty.oldest_open_ms) == ({REQUESTING: 0, PENDING: 0}, {})
        assert (empty.oldest_asked_ms, empty.needs_person) == ({}, {})
        batch = await accepted(
            harness.store, *[transfer(n, created_at=NOON + at) for n, at in enumerate((50, 10, 20, 5))]
        )
        await taken(harness.store, batch[3], FAILED)
        await harness.store.record([step(batch[1], PENDING), step(batch[2], PENDING, needs_person=Need.HOLD_MISSING)])
        await harness.reopen()
        summary = await harness.store.open_summary()
        assert summary.by_status == {REQUESTING: 1, PENDING: 2}
        assert summary.oldest_open_ms == {REQUESTING: NOON + 50, PENDING: NOON + 10}
        assert summary.needs_person == {"hold_missing": 1}

    async def test_the_summary_tells_since_when_each_core_owes_an_answer(self, harness: StoreHarness) -> None:
        """The time is when the core was asked: retries keep it, an answer ends it, another command starts it again, and
        final transfers and those that wait for a person are left out.
        """
        legs = (Leg(Side.SOURCE, "one"), Leg(Side.TARGET, "two"))
        first, second = await accepted(harness.store, transfer(1, legs=legs), transfer(2, legs=legs))
        [first] = await changed(harness.store, step(first, PENDING, legs=asked(first)))
        await harness.reopen()
        [second] = await changed(
            harness.store, step(replace(second, updated_at=NOON + 50), PENDING, legs=asked(second))
        )
        retried = replace(first, attempts=1, updated_at=NOON + 7_000)
        [first] = await changed(harness.store, Change(first.revision, retried))
        await harness.reopen()
        assert (await harness.store.open_summary()).oldest_asked_ms == {"one": NOON + 1_000}
        both = (with_state(first, LegState.APPLIED)[0], replace(legs[1], state=LegState.ASKED))
        [first] = await changed(
            harness.store, Change(first.revision, replace(first, legs=both, updated_at=NOON + 8_000))
        )
        assert (await harness.store.open_summary()).oldest_asked_ms == {"one": NOON + 1_050, "two": NOON + 8_000}
        undoing = (replace(both[0], state=LegState.REVERSING), replace(both[1], state=LegState.REFUSED))
        [first] = await changed(
            harness.store, Change(first.revision, replace(first, legs=undoing, updated_at=NOON + 9_000))
        )
        [third] = await accepted(harness.store, transfer(3, legs=legs))
        [third] = await changed(harness.store, step(third, PENDING, legs=asked(third), decision=Decision.POST))
        await taken(harness.store, third, SUCCESS)
        doubted = replace(second, needs_person=Need.CORE_CONTRADICTION)
        await harness.store.record([Change(second.revision, doubted)])
        assert (await harness.store.open_summary()).oldest_asked_ms == {"one": NOON + 9_000}
