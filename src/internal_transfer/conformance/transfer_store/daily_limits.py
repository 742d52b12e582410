"""The daily limit of each owner and asset (G13)."""

from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.conformance.transfer_store.transfers import (
    ADA,
    BOB,
    DAY,
    FAILED,
    PENDING,
    SUCCESS,
    StoreTests,
    accepted,
    changed,
    proposal,
    step,
    taken,
    transfer,
)
from internal_transfer.domain.identifier import MILLISECONDS_PER_DAY
from internal_transfer.domain.refusal import Code
from internal_transfer.ports.transfer_store import Accepted, DailyLimitExceeded, IdTaken, TransferStore


class DailyLimits(StoreTests):
    """The daily limit of each owner and asset (G13)."""

    async def test_a_daily_limit_is_exact(self, store: TransferStore) -> None:
        """The last unit can be used and not one more; a refusal says what is left and records nothing."""
        await accepted(store, transfer(1, amount=60))
        over = transfer(2, amount=41, key="k")
        assert await store.accept([proposal(over, daily_units=100)]) == [DailyLimitExceeded(40)]
        assert await store.by_keys([(ADA, "k")]) == [None]
        assert await store.get([over.id]) == [None]
        assert await store.accept([proposal(replace(over, amount=40), daily_units=100)]) == [Accepted()]
        assert await store.accept([proposal(transfer(3, amount=1), daily_units=100)]) == [DailyLimitExceeded(0)]
        assert await store.accept([proposal(transfer(3, amount=1), daily_units=50)]) == [DailyLimitExceeded(0)]
        assert await store.daily_used(ADA, "USDT", DAY) == 100

    async def test_a_daily_limit_holds_within_a_batch(self, store: TransferStore) -> None:
        """Each proposal of a batch sees what those before it used; a smaller one may fit after a larger did not."""
        batch = [proposal(transfer(n, amount=amount), daily_units=100) for n, amount in enumerate((60, 50, 30, 20, 10))]
        outcomes = await store.accept(batch)
        assert outcomes == [Accepted(), DailyLimitExceeded(40), Accepted(), DailyLimitExceeded(10), Accepted()]

    async def test_an_id_that_is_taken_uses_nothing_of_the_limit(self, store: TransferStore) -> None:
        """A proposal of the same batch finds the limit as if the one whose id is taken had not been there."""
        await accepted(store, transfer(1, amount=10, owner=BOB))
        batch = [transfer(1, amount=60), transfer(2, amount=100, key="k")]
        outcomes = await store.accept([proposal(each, daily_units=100) for each in batch])
        assert outcomes == [IdTaken(), Accepted()]

    async def test_a_daily_limit_is_by_owner_asset_and_day(self, store: TransferStore) -> None:
        """Each owner, asset and UTC day has its own sum; the day is that of the id's time."""
        midnight = (DAY + 1) * MILLISECONDS_PER_DAY
        batch = [
            transfer(amount=100, at=midnight - 1),
            transfer(amount=100, at=midnight),
            transfer(1, amount=100, owner=BOB),
            transfer(2, amount=100, asset="BTC"),
        ]
        assert await store.accept([proposal(each, daily_units=100) for each in batch]) == [Accepted()] * 4
        assert [await store.daily_used(ADA, "USDT", DAY + n) for n in (-1, 0, 1, 2)] == [0, 100, 100, 0]
        assert await store.daily_used(BOB, "USDT", DAY) == 100
        assert await store.daily_used(ADA, "BTC", DAY) == 100

    async def test_a_daily_limit_survives_a_restart(self, harness: StoreHarness) -> None:
        """Sums larger than 64 bits are exact after a restart."""
        await accepted(harness.store, transfer(1, amount=2**112 - 1), transfer(2, amount=2**112 - 1))
        await harness.reopen()
        assert await harness.store.daily_used(ADA, "USDT", DAY) == 2**113 - 2
        [outcome] = await harness.store.accept([proposal(transfer(3, amount=2), daily_units=2**113 - 1)])
        assert outcome == DailyLimitExceeded(1)

    async def test_a_failed_transfer_gives_its_share_back_once_to_its_own_day(self, harness: StoreHarness) -> None:
        """A transfer that fails after midnight or a restart gives back to its id's day, and does so once."""
        store = harness.store
        late = transfer(amount=70, at=(DAY + 1) * MILLISECONDS_PER_DAY - 1)
        early = transfer(amount=30, at=(DAY + 1) * MILLISECONDS_PER_DAY)
        await accepted(store, late, early)
        [pending] = await changed(store, step(late, PENDING))
        await harness.reopen()
        store = harness.store
        change = step(pending, FAILED, failure=Code.CORE_REFUSED)
        assert [each is None for each in await store.record([change, change])] == [False, True]
        assert await store.record([change]) == [None]
        assert [await store.daily_used(ADA, "USDT", DAY + n) for n in (0, 1)] == [0, 30]
        await harness.reopen()
        assert [await harness.store.daily_used(ADA, "USDT", DAY + n) for n in (0, 1)] == [0, 30]
        assert await harness.store.accept([proposal(transfer(5, amount=70), daily_units=70)]) == [Accepted()]

    async def test_success_keeps_its_share(self, store: TransferStore) -> None:
        """A transfer that succeeded still counts against its day."""
        [first] = await accepted(store, transfer(amount=70))
        await taken(store, first, PENDING, SUCCESS)
        assert await store.daily_used(ADA, "USDT", DAY) == 70
