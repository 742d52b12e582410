"""Holds, and how posts and voids resolve them."""

import pytest
from msgspec.structs import replace

from internal_transfer.conformance.ledger.world import ALICE, BANK, BOB, LedgerTests, World
from internal_transfer.ports.ledger import AMOUNT_MAX, TransferResult


class TwoPhases(LedgerTests):
    """Holds, and how posts and voids resolve them."""

    @pytest.mark.parametrize(
        ("first", "second", "result"),
        [
            (("post", 30), ("post", 30), "pending_transfer_already_posted"),
            (("post", 100), ("void", 0), "pending_transfer_already_posted"),
            (("void", 0), ("post", 100), "pending_transfer_already_voided"),
            (("void", 100), ("void", 100), "pending_transfer_already_voided"),
            (("post", 0), ("post", 100), "pending_transfer_already_posted"),
        ],
    )
    async def test_a_hold_is_resolved_once(
        self, world: World, first: tuple[str, int], second: tuple[str, int], result: str
    ) -> None:
        """Once a hold is posted or voided, a second post or void has no effect, and its id is not burnt (G4)."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        makes = {"post": world.post, "void": world.void}
        await world.succeed(world.hold(1, ALICE, BOB, 100))
        await world.succeed(makes[first[0]](2, 1, first[1]))
        after_first = await world.balances(ALICE)
        for _ in range(2):
            assert await world.create(makes[second[0]](3, 1, second[1])) == [result]
        assert await world.balances(ALICE) == after_first

    @pytest.mark.parametrize(
        ("resolve", "amount", "moved"),
        [
            ("post", 100, 100),
            ("post", 30, 30),
            ("post", 0, 0),
            ("post", AMOUNT_MAX, 100),
            ("void", 0, 0),
            ("void", 100, 0),
        ],
    )
    async def test_a_resolution_moves_what_it_says_and_releases_the_rest(
        self, world: World, resolve: str, amount: int, moved: int
    ) -> None:
        """A post moves its amount (2^128-1 means all) and releases the rest; a void releases everything."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        await world.succeed(world.hold(1, ALICE, BOB, 100))
        assert await world.balances(ALICE) == (100, 0, 0, 100)
        assert await world.balances(BOB) == (0, 0, 100, 0)
        await world.succeed({"post": world.post, "void": world.void}[resolve](2, 1, amount))
        assert await world.balances(ALICE) == (0, moved, 0, 100)
        assert await world.balances(BOB) == (0, 0, 0, moved)

    @pytest.mark.parametrize(
        ("amount", "result"),
        [(99, "pending_transfer_has_different_amount"), (101, "exceeds_pending_transfer_amount"), (0, "created")],
    )
    async def test_a_void_is_for_all_of_the_hold(self, world: World, amount: int, result: str) -> None:
        """A void's amount may be 0 or the hold's; any other is refused."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        await world.succeed(world.hold(1, ALICE, BOB, 100))
        assert await world.create(world.void(2, 1, amount)) == [result]

    @pytest.mark.parametrize(
        ("sent", "again", "result"),
        [
            (("post", 30), ("post", 30), "exists"),
            (("post", 30), ("post", 31), "exists_with_different_amount"),
            (("post", AMOUNT_MAX), ("post", AMOUNT_MAX), "exists"),
            (("post", AMOUNT_MAX), ("post", 100), "exists"),
            (("post", 100), ("post", AMOUNT_MAX), "exists"),
            (("post", 30), ("post", AMOUNT_MAX), "exists_with_different_amount"),
            (("post", 0), ("post", 0), "exists"),
            (("void", 0), ("void", 100), "exists"),
            (("void", 100), ("void", 0), "exists"),
            (("void", 0), ("void", 7), "exists_with_different_amount"),
            (("post", 100), ("void", 100), "exists_with_different_flags"),
        ],
    )
    async def test_a_resolution_sent_again_is_recognised(
        self, world: World, sent: tuple[str, int], again: tuple[str, int], result: str
    ) -> None:
        """A repeat is compared by what its amount means for the hold, not by how it is written."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        makes = {"post": world.post, "void": world.void}
        await world.succeed(world.hold(1, ALICE, BOB, 100), makes[sent[0]](2, 1, sent[1]))
        assert await world.create(makes[again[0]](2, 1, again[1])) == [result]

    @pytest.mark.parametrize("field", ["user_data_128", "user_data_64", "user_data_32"])
    @pytest.mark.parametrize(
        ("sent", "again", "result"),
        [(0, 0, "exists"), (0, 7, "exists"), (8, 8, "exists"), (8, 0, "different"), (0, 8, "different")],
    )
    async def test_a_resolution_inherits_what_it_leaves_zero(
        self, world: World, field: str, sent: int, again: int, result: str
    ) -> None:
        """User data left 0 is taken from the hold, both in what is stored and when a repeat is compared."""
        await world.open_accounts(BANK, ALICE)
        await world.succeed(world.hold(1, BANK, ALICE, 100, **{field: 7}), world.post(2, 1, 100, **{field: sent}))
        [post] = await world.ledger.lookup_transfers([world.at(2)])
        assert getattr(post, field) == (7 if sent == 0 else 8)
        assert (post.debit_account_id, post.credit_account_id, post.ledger, post.code) == (
            world.at(BANK),
            world.at(ALICE),
            1,
            1,
        )
        expected = "exists" if result == "exists" else f"exists_with_different_{field}"
        assert await world.create(world.post(2, 1, 100, **{field: again})) == [expected]

    async def test_a_post_before_its_hold_burns_the_post_alone(self, world: World) -> None:
        """The post's id is burnt; the hold can still be created, and posted under another id."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        assert await world.create(world.post(2, 1, 100)) == ["pending_transfer_not_found"]
        await world.succeed(world.hold(1, ALICE, BOB, 100))
        assert await world.create(world.post(2, 1, 100)) == ["id_already_failed"]
        await world.succeed(world.post(3, 1, 100))

    async def test_a_hold_made_again_after_it_was_posted_exists(self, world: World) -> None:
        """Resolving a hold does not change its row, and the row does not show it."""
        await world.open_accounts(BANK, ALICE)
        hold = world.hold(1, BANK, ALICE, 100)
        [created] = await world.ledger.create_transfers([hold])
        await world.succeed(world.post(2, 1, 100))
        [again] = await world.ledger.create_transfers([hold])
        assert (again.status, again.timestamp) == (TransferResult.EXISTS, created.timestamp)
        assert await world.ledger.lookup_transfers([hold.id]) == [replace(hold, timestamp=created.timestamp)]

    async def test_holds_are_resolved_after_a_restart(self, world: World) -> None:
        """Holds from before a restart are posted, voided and refused after it as if there had been none."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        await world.succeed(*(world.hold(number, ALICE, BOB, 10) for number in (1, 2, 3)))
        await world.succeed(world.post(4, 1, 10))
        await world.reopen()
        assert await world.create(world.void(5, 1), world.post(6, 2, 10), world.void(7, 3), world.void(8, 2)) == [
            "pending_transfer_already_posted",
            "created",
            "created",
            "pending_transfer_already_posted",
        ]
        assert await world.balances(ALICE) == (0, 20, 0, 100)
