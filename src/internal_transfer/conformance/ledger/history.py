"""Timestamps, and reading back what happened."""

from msgspec.structs import replace

from internal_transfer.conformance.ledger.world import (
    ALICE,
    BANK,
    BOB,
    LINKED,
    POST,
    U16_MAX,
    U32_MAX,
    U64_MAX,
    UNKNOWN,
    LedgerTests,
    World,
    balances,
    replay,
)
from internal_transfer.ports.ledger import AMOUNT_MAX, U128_MAX


class History(LedgerTests):
    """Timestamps, and reading back what happened."""

    async def test_timestamps_rise_with_every_event(self, world: World) -> None:
        """Each event of a batch gets the next nanosecond, even a failed one; `exists` gets the original's timestamp."""
        await world.open_accounts(BANK, ALICE)
        outcomes = await world.ledger.create_transfers(
            [
                world.plain(1, BANK, ALICE, 1),
                world.plain(2, BANK, BANK, 1),
                world.plain(1, BANK, ALICE, 1),
                world.plain(3, BANK, ALICE, 1),
            ]
        )
        first = outcomes[0].timestamp
        assert [outcome.timestamp - first for outcome in outcomes] == [0, 1, 0, 3]

    async def test_history_is_read_in_order_page_by_page(self, world: World) -> None:
        """Transfers are read from any timestamp on in rising order, and the newest in falling order."""
        await world.open_accounts(BANK, ALICE)
        outcomes = await world.ledger.create_transfers([world.plain(9 - n, BANK, ALICE, n) for n in range(8)])
        timestamps = [outcome.timestamp for outcome in outcomes]
        assert [transfer.timestamp for transfer in await world.history(timestamps[0] - 1)] == timestamps
        assert [transfer.timestamp for transfer in await world.ledger.transfers_after(timestamps[3], 2)] == timestamps[
            4:6
        ]
        newest = await world.ledger.newest_transfers(3)
        assert [transfer.timestamp for transfer in newest] == timestamps[:-4:-1]
        assert await world.ledger.transfers_after(U64_MAX, 5) == []

    async def test_transfers_come_back_as_they_were_created(self, world: World) -> None:
        """Every field survives a restart, even at its largest value; look-ups keep order and repeats."""
        await world.open_accounts(BANK, ALICE, ledger=U32_MAX)
        fields = {"user_data_128": U128_MAX, "user_data_64": U64_MAX, "user_data_32": U32_MAX}
        hold = world.hold(1, BANK, ALICE, U128_MAX, ledger=U32_MAX, code=U16_MAX, **fields)
        post = world.post(2, 1, 5, user_data_64=2**63)
        held, posted = await world.ledger.create_transfers([hold, post])
        await world.reopen()
        expected_hold = replace(hold, timestamp=held.timestamp)
        expected_post = replace(
            expected_hold,
            id=post.id,
            pending_id=hold.id,
            amount=5,
            flags=POST,
            user_data_64=2**63,
            timestamp=posted.timestamp,
        )
        found = await world.ledger.lookup_transfers([post.id, world.at(UNKNOWN), hold.id, post.id])
        assert found == [expected_post, expected_hold, expected_post]

    async def test_replaying_the_history_gives_the_balances(self, world: World) -> None:
        """Replaying all transfers from nothing gives every balance, and debits equal credits (G1, G12)."""
        await world.fund(ALICE, 1_000)
        await world.open_accounts(BOB, 5)
        for round_ in range(1, 30):
            number = 10 * round_
            await world.create(
                world.hold(number, ALICE, BOB, 7 * round_),
                world.hold(number + 1, BOB, 5, round_, flags=LINKED),
                world.plain(number + 2, 5, UNKNOWN if round_ % 3 == 0 else ALICE, round_),
                [world.post(number + 3, number, 3 * round_), world.void(number + 3, number)][round_ % 2],
                world.post(number + 4, number - 9, AMOUNT_MAX),
            )
        numbers = (BANK, ALICE, BOB, 5)
        accounts = await world.ledger.lookup_accounts([world.at(number) for number in numbers])
        sums = replay(await world.history())
        assert {account.id: balances(account) for account in accounts} == {
            account_id: tuple(figures) for account_id, figures in sums.items()
        }
        totals = [sum(column) for column in zip(*sums.values(), strict=True)]
        assert totals[0] == totals[2]
        assert totals[1] == totals[3]
        await world.reopen()
        assert await world.ledger.lookup_accounts([world.at(number) for number in numbers]) == accounts
