"""The balance limits that the ledger itself enforces."""

from collections import Counter

from internal_transfer.conformance.ledger.world import ALICE, BANK, BOB, CREDITS_LIMITED, LedgerTests, World
from internal_transfer.ports.ledger import TransferResult


class Limits(LedgerTests):
    """The balance limits that the ledger itself enforces."""

    async def test_racing_spends_never_overdraw(self, world: World) -> None:
        """Of holds that together exceed the balance, exactly those it covers are created (G3)."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        results = Counter(await world.create(*(world.hold(number, ALICE, BOB, 30) for number in range(1, 11))))
        assert results == {TransferResult.CREATED: 3, TransferResult.EXCEEDS_CREDITS: 7}
        assert await world.available(ALICE) == 10
        await world.succeed(world.post(21, 1, 30), world.void(22, 2))
        assert await world.available(ALICE) == 40
        assert await world.create(world.plain(23, ALICE, BOB, 41), world.plain(24, ALICE, BOB, 40)) == [
            "exceeds_credits",
            "created",
        ]
        assert await world.available(ALICE) == 0

    async def test_money_on_its_way_in_cannot_be_spent(self, world: World) -> None:
        """Pending credits do not count towards what an account may spend; posted ones do."""
        await world.fund(ALICE, 0)
        await world.open_accounts(BOB)
        await world.succeed(world.hold(1, BANK, ALICE, 50))
        assert await world.create(world.hold(2, ALICE, BOB, 1)) == ["exceeds_credits"]
        await world.succeed(world.post(3, 1, 50), world.hold(4, ALICE, BOB, 50))

    async def test_the_twin_limit_holds_credits_to_debits(self, world: World) -> None:
        """An account whose credits must not exceed its debits takes in no more than it has paid out."""
        await world.open_accounts(BANK)
        await world.open_accounts(ALICE, flags=CREDITS_LIMITED)
        await world.succeed(world.plain(1, ALICE, BANK, 10), world.hold(2, BANK, ALICE, 6))
        assert await world.create(world.hold(3, BANK, ALICE, 5), world.hold(4, BANK, ALICE, 4)) == [
            "exceeds_debits",
            "created",
        ]
        assert await world.balances(ALICE) == (0, 10, 10, 0)
