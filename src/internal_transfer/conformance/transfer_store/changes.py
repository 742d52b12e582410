"""Recording a transfer's next state."""

import pytest
from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    FAILED,
    LEGAL,
    NOON,
    PENDING,
    REQUESTING,
    SUCCESS,
    WAYS,
    StoreTests,
    accepted,
    changed,
    step,
    taken,
    transfer,
)
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Decision, IllegalTransition, Need, Status
from internal_transfer.ports.transfer_store import Change, TransferStore


class Changes(StoreTests):
    """Recording a transfer's next state."""

    async def test_every_field_of_a_change_is_recorded(self, harness: StoreHarness) -> None:
        """Every field that a change may write is read back; the revision is the store's own count."""
        [first] = await accepted(harness.store, transfer(memo="m"))
        after = step(
            first,
            PENDING,
            legs=(Leg(Side.TARGET, "engine", LegState.REFUSED, 'because "x", ü'),),
            due_at=NOON + 9,
            attempts=3,
            fencing=True,
            decision=Decision.VOID,
            needs_person=Need.CORE_CONTRADICTION,
            post_attempt=4,
            void_attempt=5,
            ledger_timestamp=2**62,
            revision=99,
        )
        [recorded] = await changed(harness.store, after)
        assert recorded == replace(after.after, revision=2)
        await harness.reopen()
        assert await harness.store.get([first.id]) == [recorded]
        [failed] = await changed(harness.store, step(recorded, FAILED, failure=Code.VOIDED_BY_OPERATOR))
        await harness.reopen()
        assert await harness.store.get([first.id]) == [failed]
        assert (failed.revision, failed.version, failed.failure) == (3, 3, Code.VOIDED_BY_OPERATOR)

    async def test_a_change_of_an_older_revision_is_not_recorded(self, store: TransferStore) -> None:
        """A change of an older revision returns None, even within a batch; the rest of the batch is recorded."""
        first, other = await accepted(store, transfer(1), transfer(2))
        stale = Change(1, replace(first, attempts=9))
        [renewed] = await changed(store, Change(1, replace(first, attempts=1)))
        assert renewed.revision == 2
        results = await store.record([stale, step(other, PENDING), step(other, PENDING), Change(7, renewed)])
        assert [each and each.id for each in results] == [None, other.id, None, None]
        assert await store.get([first.id]) == [renewed]

    async def test_a_batch_may_change_a_transfer_twice(self, store: TransferStore) -> None:
        """Each change of a batch sees those before it."""
        [first] = await accepted(store, transfer())
        pending = step(first, PENDING)
        success = step(replace(pending.after, revision=2), SUCCESS)
        results = await changed(store, pending, success)
        assert [(each.status, each.revision) for each in results] == [(PENDING, 2), (SUCCESS, 3)]
        assert [event.status for event in (await store.events([first.id]))[0]] == [REQUESTING, PENDING, SUCCESS]

    async def test_a_change_of_a_transfer_that_does_not_exist_is_not_recorded(self, store: TransferStore) -> None:
        """A change of an unknown transfer returns None, and nothing is written."""
        assert await store.record([step(transfer(), PENDING)]) == [None]
        assert await store.get([transfer().id]) == [None]
        assert await store.feed(0, 10) == []

    @pytest.mark.parametrize(("before", "after"), [(one, two) for one in Status for two in Status if one is not two])
    async def test_only_changes_of_the_table_are_recorded(
        self, harness: StoreHarness, before: Status, after: Status
    ) -> None:
        """A change of status not in the table raises, and of its batch nothing is recorded (G8)."""
        store = harness.store
        first, other = await accepted(store, transfer(1), transfer(2))
        first = await taken(store, first, *WAYS[before])
        wanted = Change(first.revision, replace(first, status=after, version=first.version + 1))
        if (before, after) in LEGAL:
            [recorded] = await changed(store, wanted)
            assert recorded.status is after
        else:
            with pytest.raises(IllegalTransition):
                await store.record([step(other, PENDING), wanted])
            await harness.reopen()
            assert await harness.store.get([first.id, other.id]) == [first, other]
            assert [len(events) for events in await harness.store.events([first.id, other.id])] == [first.version, 1]

    @pytest.mark.parametrize("final", [SUCCESS, FAILED])
    async def test_a_final_transfer_takes_no_change_at_all(self, harness: StoreHarness, final: Status) -> None:
        """A final record cannot be changed, not even without a change of status (G8)."""
        [first] = await accepted(harness.store, transfer())
        ended = await taken(harness.store, first, *WAYS[final])
        with pytest.raises(IllegalTransition):
            await harness.store.record([Change(ended.revision, replace(ended, attempts=1))])
        await harness.reopen()
        assert await harness.store.get([first.id]) == [ended]

    async def test_a_refusal_that_raises_takes_nobody_elses_work_back(self, harness: StoreHarness) -> None:
        """A batch that raises leaves what other callers did in the same turn on record."""
        first, second = await accepted(harness.store, transfer(1), transfer(2))
        with pytest.raises(IllegalTransition):
            await harness.store.record([Change(1, replace(first, status=SUCCESS, version=2))])
        pending = await taken(harness.store, second, PENDING)
        await harness.reopen()
        assert await harness.store.get([first.id, second.id]) == [first, pending]
