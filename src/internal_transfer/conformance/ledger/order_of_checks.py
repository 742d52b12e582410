"""Which of several faults decides the result: TigerBeetle's order of precedence."""

from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec
import pytest

from internal_transfer.conformance.ledger.world import (
    ALICE,
    BANK,
    BOB,
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    PENDING,
    POST,
    UNKNOWN,
    VOID,
    LedgerTests,
    World,
)
from internal_transfer.ports.ledger import BURNING, U128_MAX


@dataclass
class Repair:
    """The result expected now, and the fields to repair afterwards."""

    result: str
    fields: dict[str, Any]


def repairs(*steps: tuple[str, dict[str, Any]]) -> list[Repair]:
    """Returns the expected results in order, each with the repair that follows it."""
    return [Repair(result, fields) for result, fields in steps]


ACCOUNT_REPAIRS = repairs(
    ("timestamp_must_be_zero", {"timestamp": 0}),
    ("reserved_flag", {"flags": DEBITS_LIMITED | CREDITS_LIMITED}),
    ("id_must_not_be_zero", {"id": U128_MAX}),
    ("id_must_not_be_int_max", {"id": 10}),
    ("flags_are_mutually_exclusive", {"flags": DEBITS_LIMITED}),
    ("debits_pending_must_be_zero", {"debits_pending": 0}),
    ("debits_posted_must_be_zero", {"debits_posted": 0}),
    ("credits_pending_must_be_zero", {"credits_pending": 0}),
    ("credits_posted_must_be_zero", {"credits_posted": 0}),
    ("ledger_must_not_be_zero", {"ledger": 1}),
    ("code_must_not_be_zero", {"code": 1}),
    ("created", {"code": 2, "ledger": 2, "user_data_32": 1, "user_data_64": 1, "user_data_128": 1, "flags": 0}),
    ("exists_with_different_flags", {"flags": DEBITS_LIMITED}),
    ("exists_with_different_user_data_128", {"user_data_128": 0}),
    ("exists_with_different_user_data_64", {"user_data_64": 0}),
    ("exists_with_different_user_data_32", {"user_data_32": 0}),
    ("exists_with_different_ledger", {"ledger": 1}),
    ("exists_with_different_code", {"code": 1}),
    ("exists", {}),
)


async def walk(world: World, fields: dict[str, Any], steps: list[Repair]) -> None:
    """Sends a transfer repeatedly, a little more repaired each time; a burnt id is replaced by a fresh one."""
    fresh = count(5_000)
    seen = []
    for repair in steps:
        ids = {name: world.at(value) for name, value in fields.items() if name.endswith("id")}
        outcome = await world.create(msgspec.convert(fields | ids, type(world.post(1, 1, 1))))
        seen.append(outcome[0].value)
        if outcome[0] in BURNING:
            fields["id"] = next(fresh)
        fields |= repair.fields
    assert seen == [repair.result for repair in steps]


class OrderOfChecks(LedgerTests):
    """Which of several faults decides the result: TigerBeetle's order of precedence."""

    async def test_accounts_are_checked_in_tigerbeetles_order(self, world: World) -> None:
        """An account that is wrong in every way gets each result in turn as its faults are repaired one by one."""
        fields = {
            "id": 0,
            "timestamp": 1,
            "flags": 1 << 6,
            "ledger": 0,
            "code": 0,
            "debits_pending": 1,
            "debits_posted": 1,
            "credits_pending": 1,
            "credits_posted": 1,
        }
        seen = []
        for repair in ACCOUNT_REPAIRS:
            account = world.account(fields["id"], **{name: value for name, value in fields.items() if name != "id"})
            [outcome] = await world.ledger.create_accounts([account])
            seen.append(outcome.status.value)
            fields |= repair.fields
        assert seen == [repair.result for repair in ACCOUNT_REPAIRS]

    async def test_transfers_are_checked_in_tigerbeetles_order(self, world: World) -> None:
        """A transfer that is wrong in every way gets each result in turn as its faults are repaired one by one."""
        await world.open_accounts(ALICE, flags=DEBITS_LIMITED)
        await world.open_accounts(BOB, flags=CREDITS_LIMITED)
        await world.open_accounts(BANK, 5)
        await world.open_accounts(6, ledger=2)
        await walk(
            world,
            {
                "id": 0,
                "timestamp": 1,
                "flags": 1 << 9,
                "debit_account_id": 0,
                "credit_account_id": 0,
                "pending_id": 77,
                "ledger": 0,
                "code": 0,
                "amount": 10,
            },
            repairs(
                ("timestamp_must_be_zero", {"timestamp": 0}),
                ("reserved_flag", {"flags": 0}),
                ("id_must_not_be_zero", {"id": U128_MAX}),
                ("id_must_not_be_int_max", {"id": 100}),
                ("debit_account_id_must_not_be_zero", {"debit_account_id": U128_MAX}),
                ("debit_account_id_must_not_be_int_max", {"debit_account_id": UNKNOWN}),
                ("credit_account_id_must_not_be_zero", {"credit_account_id": U128_MAX}),
                ("credit_account_id_must_not_be_int_max", {"credit_account_id": UNKNOWN}),
                ("accounts_must_be_different", {"credit_account_id": UNKNOWN + 1}),
                ("pending_id_must_be_zero", {"pending_id": 0}),
                ("ledger_must_not_be_zero", {"ledger": 3}),
                ("code_must_not_be_zero", {"code": 1}),
                ("debit_account_not_found", {"debit_account_id": ALICE}),
                ("credit_account_not_found", {"credit_account_id": 6}),
                ("accounts_must_have_the_same_ledger", {"credit_account_id": BOB}),
                ("transfer_must_have_the_same_ledger_as_accounts", {"ledger": 1}),
                ("exceeds_credits", {"debit_account_id": BANK}),
                ("exceeds_debits", {"credit_account_id": 5}),
                ("created", {"flags": PENDING, "pending_id": 5, "debit_account_id": 5, "credit_account_id": BANK}),
                ("exists_with_different_flags", {"flags": 0}),
                ("exists_with_different_pending_id", {"pending_id": 0, "amount": 11}),
                ("exists_with_different_debit_account_id", {"debit_account_id": BANK}),
                ("exists_with_different_credit_account_id", {"credit_account_id": 5, "user_data_128": 1}),
                ("exists_with_different_amount", {"amount": 10, "user_data_64": 1}),
                ("exists_with_different_user_data_128", {"user_data_128": 0, "user_data_32": 1}),
                ("exists_with_different_user_data_64", {"user_data_64": 0, "ledger": 2}),
                ("exists_with_different_user_data_32", {"user_data_32": 0, "code": 2}),
                ("exists_with_different_ledger", {"ledger": 1}),
                ("exists_with_different_code", {"code": 1}),
                ("exists", {}),
            ),
        )

    async def test_posts_are_checked_in_tigerbeetles_order(self, world: World) -> None:
        """A post that is wrong in every way gets each result in turn as its faults are repaired one by one."""
        await world.open_accounts(BANK, ALICE, BOB)
        await world.succeed(world.plain(1, BANK, ALICE, 50), world.hold(2, BANK, ALICE, 50), world.post(3, 2, 50))
        await world.succeed(world.hold(4, BANK, ALICE, 50), world.void(5, 4), world.hold(6, BANK, ALICE, 50))
        await walk(
            world,
            {
                "id": 200,
                "flags": POST | VOID | PENDING,
                "pending_id": 0,
                "debit_account_id": BOB,
                "credit_account_id": BOB,
                "ledger": 9,
                "code": 9,
                "amount": 51,
            },
            repairs(
                ("flags_are_mutually_exclusive", {"flags": POST | PENDING}),
                ("flags_are_mutually_exclusive", {"flags": VOID | PENDING}),
                ("flags_are_mutually_exclusive", {"flags": POST}),
                ("pending_id_must_not_be_zero", {"pending_id": U128_MAX}),
                ("pending_id_must_not_be_int_max", {"pending_id": 200}),
                ("pending_id_must_be_different", {"pending_id": UNKNOWN}),
                ("pending_transfer_not_found", {"pending_id": 1}),
                ("pending_transfer_not_pending", {"pending_id": 2}),
                ("pending_transfer_has_different_debit_account_id", {"debit_account_id": BANK}),
                ("pending_transfer_has_different_credit_account_id", {"credit_account_id": ALICE}),
                ("pending_transfer_has_different_ledger", {"ledger": 1}),
                ("pending_transfer_has_different_code", {"code": 1}),
                ("exceeds_pending_transfer_amount", {"amount": 49, "flags": VOID}),
                ("pending_transfer_has_different_amount", {"amount": 50}),
                ("pending_transfer_already_posted", {"pending_id": 4}),
                ("pending_transfer_already_voided", {"pending_id": 6, "flags": POST, "user_data_128": 1}),
                ("created", {"flags": VOID, "pending_id": 4, "debit_account_id": BOB}),
                ("exists_with_different_flags", {"flags": POST, "credit_account_id": BOB}),
                ("exists_with_different_pending_id", {"pending_id": 6, "amount": 49}),
                ("exists_with_different_debit_account_id", {"debit_account_id": 0}),
                ("exists_with_different_credit_account_id", {"credit_account_id": 0, "user_data_128": 2}),
                ("exists_with_different_amount", {"amount": 50, "user_data_64": 2}),
                ("exists_with_different_user_data_128", {"user_data_128": 1, "user_data_32": 2}),
                ("exists_with_different_user_data_64", {"user_data_64": 0, "ledger": 2}),
                ("exists_with_different_user_data_32", {"user_data_32": 0, "code": 2}),
                ("exists_with_different_ledger", {"ledger": 0}),
                ("exists_with_different_code", {"code": 0}),
                ("exists", {}),
            ),
        )

    @pytest.mark.parametrize(
        ("before", "then", "result"),
        [
            ("hold", ("hold", BANK, BOB), "overflows_debits_pending"),
            ("hold", ("hold", BOB, ALICE), "overflows_credits_pending"),
            ("plain", ("plain", BANK, BOB), "overflows_debits_posted"),
            ("plain", ("plain", BOB, ALICE), "overflows_credits_posted"),
            ("plain", ("hold", BANK, BOB), "overflows_debits_posted"),
            ("plain", ("hold", BOB, ALICE), "overflows_credits_posted"),
            ("hold", ("plain", BANK, BOB), "overflows_debits"),
            ("hold", ("plain", BOB, ALICE), "overflows_credits"),
        ],
    )
    async def test_sums_never_overflow(
        self, world: World, before: str, then: tuple[str, int, int], result: str
    ) -> None:
        """With 2^128-1 moved, one unit more is refused, the result names the sum, and the id is not burnt."""
        await world.open_accounts(BANK, ALICE, BOB)
        makes = {"hold": world.hold, "plain": world.plain}
        await world.succeed(makes[before](1, BANK, ALICE, U128_MAX))
        kind, debit, credit = then
        assert await world.create(makes[kind](2, debit, credit, 1)) == [result]
        await world.succeed(makes[kind](2, debit, credit, 0))
