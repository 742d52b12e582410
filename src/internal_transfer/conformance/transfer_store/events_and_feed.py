"""Events, and the feed that has all of them (G11)."""

from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    FAILED,
    NOON,
    PENDING,
    REQUESTING,
    SUCCESS,
    StoreTests,
    accepted,
    changed,
    taken,
    transfer,
)
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Code
from internal_transfer.ports.transfer_store import Change


class EventsAndFeed(StoreTests):
    """Events, and the feed that has all of them (G11)."""

    async def test_every_transition_has_exactly_one_event(self, harness: StoreHarness) -> None:
        """Each change of status has one event with its version, time and code; other changes have none."""
        store = harness.store
        [first] = await accepted(store, transfer())
        [renewed] = await changed(store, Change(1, replace(first, attempts=1, updated_at=NOON + 500)))
        pending = await taken(store, renewed, PENDING)
        [pending] = await changed(store, Change(pending.revision, replace(pending, due_at=NOON + 99)))
        await taken(store, pending, FAILED, failure=Code.CORE_REFUSED)
        await harness.reopen()
        events, none = await harness.store.events([first.id, TransferId(77)])
        assert [(event.transfer_id, event.version, event.status, event.at, event.code) for event in events] == [
            (first.id, 1, REQUESTING, NOON, None),
            (first.id, 2, PENDING, NOON + 1_500, None),
            (first.id, 3, FAILED, NOON + 2_500, Code.CORE_REFUSED),
        ]
        assert none == []
        assert [event for _, event in await harness.store.feed(0, 10)] == events

    async def test_a_reader_of_the_feed_never_skips(self, harness: StoreHarness) -> None:
        """Between writes and restarts, a reader that goes on from its last number gets every event once, in order."""
        seen, after = [], 0
        for number in range(12):
            [each] = await accepted(harness.store, transfer(number))
            if number % 2:
                await taken(harness.store, each, PENDING, SUCCESS)
            for sequence, event in await harness.store.feed(after, 3):
                assert sequence > after
                after = sequence
                seen.append(event)
            if number % 5 == 4:
                await harness.reopen()
        while page := await harness.store.feed(after, 3):
            after = page[-1][0]
            seen.extend(event for _, event in page)
        ids = [transfer(number).id for number in range(12)]
        assert sorted(seen, key=lambda event: (event.transfer_id, event.version)) == [
            event for events in await harness.store.events(ids) for event in events
        ]

    async def test_a_reader_of_the_feed_finds_its_place_again(self, harness: StoreHarness) -> None:
        """Each reader has its own position, which starts at 0, survives a restart and never goes back."""
        store = harness.store
        assert await store.reader_position("publisher") == 0
        await store.move_reader("publisher", 7)
        await store.move_reader("webhooks", 3)
        await store.move_reader("publisher", 5)
        assert [await store.reader_position(each) for each in ("publisher", "webhooks", "other")] == [7, 3, 0]
        await harness.reopen()
        await harness.store.move_reader("publisher", 7)
        assert await harness.store.reader_position("publisher") == 7
        await harness.store.move_reader("publisher", 8)
        assert await harness.store.reader_position("publisher") == 8
