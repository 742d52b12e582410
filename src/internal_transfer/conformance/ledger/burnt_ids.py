"""Ids that a transient failure burns for ever, and the fence built on them."""

import pytest

from internal_transfer.conformance.ledger.world import (
    ALICE,
    BANK,
    BOB,
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    UNKNOWN,
    LedgerTests,
    World,
)
from internal_transfer.ports.ledger import BURNING

FENCE = 900


class BurntIds(LedgerTests):
    """Ids that a transient failure burns for ever, and the fence built on them."""

    async def test_the_transient_results_burn_the_id_for_ever(self, world: World) -> None:
        """After any of the five transient results the id gets `id_already_failed`, also after a restart."""
        await world.open_accounts(BANK, 5)
        await world.open_accounts(ALICE, flags=DEBITS_LIMITED)
        await world.open_accounts(BOB, flags=CREDITS_LIMITED)
        failing = [
            world.plain(1, UNKNOWN, BANK, 1),
            world.hold(2, BANK, UNKNOWN, 1),
            world.post(3, UNKNOWN, 1),
            world.hold(1 << 127, ALICE, 5, 1),
            world.plain(5, BANK, BOB, 1),
        ]
        first = await world.create(*failing)
        assert set(first) == BURNING
        assert len(first) == len(BURNING)
        now_right = [world.plain(number, BANK, 5, 1) for number in (1, 2, 3, 1 << 127, 5)]
        assert await world.create(*now_right) == ["id_already_failed"] * 5
        await world.reopen()
        assert await world.create(*now_right) == ["id_already_failed"] * 5
        assert await world.ledger.lookup_transfers([event.id for event in failing]) == []

    async def test_a_burnt_id_is_no_hold(self, world: World) -> None:
        """A post of a burnt id finds no hold, and burns its own id."""
        await world.open_accounts(BANK)
        assert await world.create(world.hold(1, BANK, UNKNOWN, 1), world.post(2, 1, 1), world.post(2, 1, 1)) == [
            "credit_account_not_found",
            "pending_transfer_not_found",
            "id_already_failed",
        ]

    async def test_other_results_leave_the_id_usable(self, world: World) -> None:
        """A transfer refused for any other reason can be repaired and sent again under its id."""
        await world.open_accounts(BANK, ALICE)
        await world.open_accounts(5, ledger=2)
        await world.succeed(world.plain(1, BANK, ALICE, 1), world.hold(2, BANK, ALICE, 9), world.void(3, 2))
        faulty = [
            world.plain(10, BANK, BANK, 1),
            world.plain(11, BANK, ALICE, 1, code=0),
            world.plain(12, BANK, 5, 1),
            world.plain(13, BANK, ALICE, 1, ledger=2),
            world.post(14, 1, 1),
            world.post(15, 2, 1),
            world.post(16, 2, 10),
        ]
        assert not BURNING & set(await world.create(*faulty))
        await world.succeed(*(world.plain(number, BANK, ALICE, 1) for number in range(10, 17)))

    @pytest.mark.parametrize(
        ("life", "answer"),
        [
            ([], "pending_transfer_not_found"),
            (["fence"], "id_already_failed"),
            (["refused"], "id_already_failed"),
            (["hold"], "exists_with_different_flags"),
            (["hold", "post"], "exists_with_different_flags"),
            (["hold", "void"], "exists_with_different_flags"),
            (["is a void"], "exists_with_different_pending_id"),
        ],
    )
    async def test_the_fence_tells_whether_the_hold_was_made(self, world: World, life: list[str], answer: str) -> None:
        """The fence, a void of an impossible hold sent under the hold's own id, burns that id or shows it is taken."""
        await world.fund(ALICE, 100)
        await world.open_accounts(BOB)
        assert await world.create(world.void(FENCE + 1, FENCE)) == ["pending_transfer_not_found"]
        assert await world.create(world.hold(FENCE, UNKNOWN, BOB, 1)) == ["debit_account_not_found"]
        events = {
            "fence": world.void(50, FENCE),
            "refused": world.hold(50, ALICE, BOB, 101),
            "hold": world.hold(50, ALICE, BOB, 100),
            "post": world.post(51, 50, 100),
            "void": world.void(51, 50),
        }
        if life == ["is a void"]:
            await world.succeed(world.hold(49, ALICE, BOB, 100), world.void(50, 49))
        else:
            await world.create(*(events[name] for name in life))
        before = await world.balances(ALICE)
        assert await world.create(world.void(50, FENCE)) == [answer]
        assert await world.balances(ALICE) == before
        late = await world.create(events["hold"])
        burnt = answer in {"pending_transfer_not_found", "id_already_failed"}
        assert (late == ["id_already_failed"]) == burnt
