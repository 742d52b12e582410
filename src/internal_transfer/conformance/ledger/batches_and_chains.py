"""How the events of one call affect each other."""

from typing import Any

import pytest

from internal_transfer.conformance.ledger.world import ALICE, BANK, BOB, LINKED, PENDING, LedgerTests, World
from internal_transfer.ports.ledger import BATCH_MAX, AccountFlag, AccountResult, TransferFlag, UnsupportedError


class BatchesAndChains(LedgerTests):
    """How the events of one call affect each other."""

    async def test_an_empty_batch_does_nothing(self, world: World) -> None:
        """An empty batch gets an empty list of results."""
        assert await world.ledger.create_accounts([]) == []
        assert await world.ledger.create_transfers([]) == []
        assert await world.ledger.lookup_accounts([]) == []
        assert await world.ledger.lookup_transfers([]) == []

    async def test_later_events_of_a_batch_see_the_earlier_ones(self, world: World) -> None:
        """A hold, its repeat, its post and a second post in one call each see the effect of those before them."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        hold, post = world.hold(1, ALICE, BOB, 60), world.post(2, 1, 60)
        assert await world.create(hold, hold, post, post, world.post(3, 1, 60), world.hold(4, ALICE, BOB, 60)) == [
            "created",
            "exists",
            "created",
            "exists",
            "pending_transfer_already_posted",
            "exceeds_credits",
        ]

    async def test_batches_have_a_greatest_size(self, world: World) -> None:
        """A call takes 8,189 events; one more is refused before anything is done."""
        await world.open_accounts(BANK, ALICE)
        transfers = [world.plain(number, BANK, ALICE, 1) for number in range(1, BATCH_MAX + 2)]
        with pytest.raises(ValueError, match="8189"):
            await world.ledger.create_transfers(transfers)
        assert await world.balances(ALICE) == (0, 0, 0, 0)
        await world.succeed(*transfers[:-1])
        assert await world.balances(ALICE) == (0, 0, 0, BATCH_MAX)
        with pytest.raises(ValueError, match="8189"):
            await world.ledger.create_accounts([world.account(number) for number in range(1, BATCH_MAX + 2)])
        with pytest.raises(ValueError, match="8189"):
            await world.ledger.lookup_accounts([world.at(BANK)] * (BATCH_MAX + 1))
        with pytest.raises(ValueError, match="8189"):
            await world.ledger.transfers_after(0, BATCH_MAX + 1)

    @pytest.mark.parametrize(
        "fields",
        [
            {"timeout": 1},
            {"flags": TransferFlag.BALANCING_DEBIT},
            {"flags": TransferFlag.BALANCING_CREDIT},
            {"flags": PENDING | TransferFlag.CLOSING_DEBIT},
            {"flags": PENDING | TransferFlag.CLOSING_CREDIT},
            {"flags": TransferFlag.IMPORTED},
        ],
        ids=str,
    )
    async def test_unused_features_of_transfers_are_refused_before_anything_is_done(
        self, world: World, fields: dict[str, Any]
    ) -> None:
        """A batch with one such transfer raises, and the good transfer before it is not created."""
        await world.open_accounts(BANK, ALICE)
        with pytest.raises(UnsupportedError):
            await world.ledger.create_transfers(
                [world.plain(1, BANK, ALICE, 1), world.plain(2, BANK, ALICE, 1, **fields)]
            )
        assert await world.ledger.lookup_transfers([world.at(1)]) == []

    @pytest.mark.parametrize("flags", [AccountFlag.IMPORTED, AccountFlag.CLOSED])
    async def test_unused_features_of_accounts_are_refused_before_anything_is_done(
        self, world: World, flags: int
    ) -> None:
        """A batch with one such account raises, and the good account before it is not created."""
        with pytest.raises(UnsupportedError):
            await world.ledger.create_accounts([world.account(1), world.account(2, flags=flags)])
        assert await world.ledger.lookup_accounts([world.at(1)]) == []

    @pytest.mark.parametrize(
        "fields",
        [
            {"user_data_128": 2**128},
            {"user_data_64": 2**64},
            {"user_data_32": 2**32},
            {"ledger": 2**32},
            {"code": 2**16},
            {"code": -1},
            {"flags": 2**16},
        ],
        ids=str,
    )
    async def test_numbers_wider_than_their_field_are_refused_before_anything_is_done(
        self, world: World, fields: dict[str, Any]
    ) -> None:
        """A number too wide for its field raises `ValueError`, and the good event before it is not created."""
        await world.open_accounts(BANK, ALICE)
        with pytest.raises(ValueError, match=r"wider|bits"):
            await world.ledger.create_transfers(
                [world.plain(1, BANK, ALICE, 1), world.plain(2, BANK, ALICE, 1, **fields)]
            )
        with pytest.raises(ValueError, match=r"wider|bits"):
            await world.ledger.create_accounts([world.account(BOB), world.account(5, **fields)])
        assert await world.ledger.lookup_transfers([world.at(1)]) == []
        assert await world.ledger.lookup_accounts([world.at(BOB)]) == []

    async def test_a_chain_is_made_as_a_whole(self, world: World) -> None:
        """All members of a chain are created; the event after the chain stands alone."""
        await world.open_accounts(BANK, ALICE)
        assert await world.create(
            world.plain(1, BANK, ALICE, 1, flags=LINKED), world.plain(2, BANK, ALICE, 1), world.plain(3, BANK, BANK, 1)
        ) == ["created", "created", "accounts_must_be_different"]

    async def test_a_chain_fails_as_a_whole(self, world: World) -> None:
        """The failing member keeps its result, the others get `linked_event_failed`, and the chain leaves no trace."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        await world.succeed(world.hold(1, ALICE, BOB, 10), world.hold(2, ALICE, BOB, 20))
        before = await world.balances(ALICE), await world.balances(BOB)
        chain = [
            world.plain(3, ALICE, BOB, 5, flags=LINKED),
            world.hold(4, ALICE, BOB, 5, flags=LINKED),
            world.post(5, 4, 3, flags=LINKED),
            world.post(6, 1, 7, flags=LINKED),
            world.void(7, 2, flags=LINKED),
            world.plain(8, ALICE, BOB, 5, code=0, flags=LINKED),
            world.plain(9, ALICE, BOB, 5),
        ]
        assert await world.create(*chain, world.plain(10, BANK, BOB, 0)) == [
            *["linked_event_failed"] * 5,
            "code_must_not_be_zero",
            "linked_event_failed",
            "created",
        ]
        assert (await world.balances(ALICE), await world.balances(BOB)) == before
        assert await world.ledger.lookup_transfers([transfer.id for transfer in chain]) == []
        repaired = [*chain[:5], world.plain(8, ALICE, BOB, 5, flags=LINKED), chain[6]]
        await world.succeed(*repaired)
        assert await world.balances(ALICE) == (0, 5 + 3 + 7 + 5 + 5, 0, 100)

    async def test_in_a_chain_only_the_member_with_the_transient_result_is_burnt(self, world: World) -> None:
        """The failing member's id stays burnt although its chain was undone; the other members can be sent again."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        chain = [
            world.hold(1, ALICE, BOB, 60, flags=LINKED),
            world.hold(2, ALICE, BOB, 60, flags=LINKED),
            world.hold(3, ALICE, BOB, 1),
        ]
        assert await world.create(*chain) == ["linked_event_failed", "exceeds_credits", "linked_event_failed"]
        assert await world.create(*chain) == ["linked_event_failed", "id_already_failed", "linked_event_failed"]
        await world.reopen()
        assert await world.create(*chain) == ["linked_event_failed", "id_already_failed", "linked_event_failed"]
        await world.succeed(world.hold(1, ALICE, BOB, 60), world.hold(3, ALICE, BOB, 1))

    async def test_a_chain_must_end_within_the_batch(self, world: World) -> None:
        """If a batch ends inside a chain, its last event gets `linked_event_chain_open`, before any other check."""
        await world.open_accounts(BANK, ALICE)
        good, bad = world.plain(1, BANK, ALICE, 1, flags=LINKED), world.plain(2, BANK, BANK, 1, flags=LINKED)
        last = world.plain(3, BANK, ALICE, 1, flags=LINKED, timestamp=1)
        assert await world.create(last) == ["linked_event_chain_open"]
        assert await world.create(good, last) == ["linked_event_failed", "linked_event_chain_open"]
        assert await world.create(good, bad, last) == [
            "linked_event_failed",
            "accounts_must_be_different",
            "linked_event_chain_open",
        ]
        assert await world.balances(ALICE) == (0, 0, 0, 0)

    async def test_a_chain_that_succeeded_does_not_succeed_again(self, world: World) -> None:
        """Sent again, the first member gets `exists` and the rest `linked_event_failed`, although they exist."""
        await world.open_accounts(BANK, ALICE)
        chain = [
            world.plain(1, BANK, ALICE, 1, flags=LINKED),
            world.plain(2, BANK, ALICE, 1, flags=LINKED),
            world.plain(3, BANK, ALICE, 1),
        ]
        await world.succeed(*chain)
        assert await world.create(*chain) == ["exists", "linked_event_failed", "linked_event_failed"]
        assert await world.create(world.plain(1, BANK, ALICE, 1)) == ["exists_with_different_flags"]
        assert await world.balances(ALICE) == (0, 0, 0, 3)

    async def test_accounts_are_created_in_chains_too(self, world: World) -> None:
        """One bad account fails its whole chain; a good chain is created."""
        linked = AccountFlag.LINKED
        chain = [world.account(1, flags=linked), world.account(2, flags=linked, code=0), world.account(3)]
        outcomes = await world.ledger.create_accounts([*chain, world.account(4)])
        assert [outcome.status for outcome in outcomes] == [
            "linked_event_failed",
            "code_must_not_be_zero",
            "linked_event_failed",
            "created",
        ]
        assert await world.ledger.lookup_accounts([account.id for account in chain]) == []
        good = [world.account(1, flags=linked), world.account(2, flags=linked), world.account(3)]
        assert {outcome.status for outcome in await world.ledger.create_accounts(good)} == {AccountResult.CREATED}
        [outcome] = await world.ledger.create_accounts([world.account(9, flags=linked)])
        assert outcome.status is AccountResult.LINKED_EVENT_CHAIN_OPEN

    async def test_a_probe_tells_what_became_of_a_hold_and_changes_nothing(self, world: World) -> None:
        """A void chained to a transfer that must fail gets a result that tells the hold's state, and has no effect."""
        await world.open_accounts(BANK, ALICE)
        await world.succeed(world.hold(1, BANK, ALICE, 5))
        spoil = world.plain(21, BANK, ALICE, 1, ledger=0)
        assert await world.create(world.void(20, 1, flags=LINKED), spoil) == [
            "linked_event_failed",
            "ledger_must_not_be_zero",
        ]
        await world.succeed(world.post(2, 1, 5))
        assert await world.create(world.void(20, 1, flags=LINKED), spoil) == [
            "pending_transfer_already_posted",
            "linked_event_failed",
        ]
