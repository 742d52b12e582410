"""Accepting transfers: each key and each id is taken once."""

from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    ADA,
    BOB,
    DAY,
    FAILED,
    NOON,
    PENDING,
    StoreTests,
    accepted,
    proposal,
    taken,
    transfer,
)
from internal_transfer.domain.identifier import TransferId, snowflake
from internal_transfer.domain.refusal import Code
from internal_transfer.ports.transfer_store import Accepted, IdTaken, KeyTaken, TransferStore


class KeysAndIds(StoreTests):
    """Accepting transfers: each key and each id is taken once."""

    async def test_an_accepted_transfer_is_read_back_as_it_was(self, store: TransferStore) -> None:
        """An accepted transfer is found at once by id and by key, with every field as it was."""
        memo = "für Ada 💶"
        [first] = await accepted(store, transfer(amount=2**112 - 1, memo=memo, legs=()))
        assert await store.get([first.id]) == [first]
        assert await store.by_keys([(ADA, first.key)]) == [KeyTaken(first, b"content")]

    async def test_unknown_ids_and_keys_are_none(self, store: TransferStore) -> None:
        """Results keep the order asked, with None for what is not on record."""
        first, second = await accepted(store, transfer(1), transfer(2))
        assert await store.get([second.id, TransferId(77), first.id, second.id]) == [second, None, first, second]
        asked_keys = [(ADA, second.key), (ADA, "other"), (BOB, first.key), (ADA, first.key)]
        found = await store.by_keys(asked_keys)
        assert found == [KeyTaken(second, b"content"), None, None, KeyTaken(first, b"content")]

    async def test_a_used_key_returns_its_transfer_and_records_nothing(self, store: TransferStore) -> None:
        """A second claim of a key returns the first one's transfer as it is now, and its fingerprint (G6)."""
        [first] = await accepted(store, transfer(1, key="k"))
        pending = await taken(store, first, PENDING)
        again = transfer(2, key="k", amount=5)
        assert await store.accept([proposal(again, fingerprint=b"other")]) == [KeyTaken(pending, b"content")]
        assert await store.get([again.id]) == [None]
        assert await store.daily_used(ADA, "USDT", DAY) == 100
        assert len(await store.feed(0, 10)) == 2

    async def test_a_key_is_claimed_once_within_a_batch(self, store: TransferStore) -> None:
        """The first of two proposals with one key wins; another owner may use the same key."""
        first, second, other = transfer(1, key="k"), transfer(2, key="k"), transfer(3, key="k", owner=BOB)
        outcomes = await store.accept([proposal(first), proposal(second, fingerprint=b"x"), proposal(other)])
        assert outcomes == [Accepted(), KeyTaken(first, b"content"), Accepted()]
        assert await store.get([first.id, second.id, other.id]) == [first, None, other]

    async def test_a_key_outlives_its_failed_transfer(self, harness: StoreHarness) -> None:
        """A failed transfer keeps its key, also after a restart."""
        [first] = await accepted(harness.store, transfer(key="k"))
        failed = await taken(harness.store, first, FAILED, failure=Code.INSUFFICIENT_BALANCE)
        await harness.reopen()
        assert await harness.store.accept([proposal(transfer(9, key="k"))]) == [KeyTaken(failed, b"content")]

    async def test_a_taken_id_is_refused_and_its_key_stays_free(self, harness: StoreHarness) -> None:
        """A taken id is refused within a batch, later and after a restart; the refused proposal's key stays free."""
        first = transfer(1)
        clash = transfer(1, key="k", owner=BOB, amount=7)
        assert await harness.store.accept([proposal(first), proposal(clash)]) == [Accepted(), IdTaken()]
        assert await harness.store.accept([proposal(clash)]) == [IdTaken()]
        await harness.reopen()
        await accepted(harness.store, transfer(5))
        assert await harness.store.accept([proposal(clash)]) == [IdTaken()]
        assert await harness.store.get([first.id]) == [first]
        assert await harness.store.daily_used(BOB, "USDT", DAY) == 0
        await accepted(harness.store, replace(clash, id=transfer(2).id))

    async def test_the_key_is_looked_at_before_the_id_and_the_id_before_the_limit(self, store: TransferStore) -> None:
        """A retry finds its transfer whatever else is wrong, and a taken id is reported before a limit."""
        [first] = await accepted(store, transfer(1, key="k"))
        outcomes = await store.accept([proposal(first, daily_units=0), proposal(transfer(1, key="l"), daily_units=0)])
        assert outcomes == [KeyTaken(first, b"content"), IdTaken()]

    async def test_ids_need_not_rise(self, harness: StoreHarness) -> None:
        """A free id below the highest is accepted, in the same turn and after a restart."""
        await accepted(harness.store, transfer(9), transfer(3))
        await harness.reopen()
        low = transfer(1, id=snowflake(at_ms=NOON - 5, node=0, counter=0))
        await accepted(harness.store, low)
        assert await harness.store.get([low.id]) == [low]
