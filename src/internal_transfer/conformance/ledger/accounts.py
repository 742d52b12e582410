"""What a ledger promises about creating accounts and looking them up."""

from msgspec.structs import replace

from internal_transfer.conformance.ledger.world import (
    ALICE,
    BANK,
    BOB,
    CREDITS_LIMITED,
    U16_MAX,
    U32_MAX,
    U64_MAX,
    UNKNOWN,
    LedgerTests,
    World,
)
from internal_transfer.ports.ledger import U128_MAX, AccountFlag, AccountResult


class Accounts(LedgerTests):
    """What a ledger promises about creating accounts and looking them up."""

    async def test_an_account_with_balances_exists_all_the_same(self, world: World) -> None:
        """An account that has moved money still `exists`: its balances are not compared with the request's zeros."""
        await world.open_accounts(BANK, ALICE)
        await world.succeed(world.plain(1, BANK, ALICE, 5))
        [outcome] = await world.ledger.create_accounts([world.account(ALICE)])
        assert outcome.status is AccountResult.EXISTS

    async def test_accounts_come_back_as_they_were_created(self, world: World) -> None:
        """Every field survives a restart, even at its largest value."""
        sent = world.account(
            7,
            ledger=U32_MAX,
            code=U16_MAX,
            user_data_128=U128_MAX,
            user_data_64=U64_MAX,
            user_data_32=U32_MAX,
            flags=CREDITS_LIMITED | AccountFlag.HISTORY,
        )
        [created] = await world.ledger.create_accounts([sent])
        [before] = await world.ledger.lookup_accounts([sent.id])
        await world.reopen()
        [after] = await world.ledger.lookup_accounts([sent.id])
        assert before == after == replace(sent, timestamp=created.timestamp)

    async def test_a_failed_account_id_is_not_burnt(self, world: World) -> None:
        """An account that was refused can be created under the same id once the request is right."""
        [refused] = await world.ledger.create_accounts([world.account(ALICE, code=0)])
        [created] = await world.ledger.create_accounts([world.account(ALICE)])
        assert [refused.status, created.status] == [AccountResult.CODE_MUST_NOT_BE_ZERO, AccountResult.CREATED]

    async def test_existing_accounts_tell_when_they_were_created(self, world: World) -> None:
        """`exists` comes with the timestamp at which the account was created."""
        [created] = await world.ledger.create_accounts([world.account(ALICE)])
        [_, exists] = await world.ledger.create_accounts([world.account(BOB), world.account(ALICE)])
        assert (exists.status, exists.timestamp) == (AccountResult.EXISTS, created.timestamp)

    async def test_lookups_of_accounts_keep_order_and_repeats(self, world: World) -> None:
        """A look-up leaves unknown ids out and returns the others in the order asked, repeated ids repeatedly."""
        await world.open_accounts(ALICE, BOB)
        found = await world.ledger.lookup_accounts([world.at(number) for number in (BOB, UNKNOWN, ALICE, BOB)])
        assert [account.id for account in found] == [world.at(number) for number in (BOB, ALICE, BOB)]
