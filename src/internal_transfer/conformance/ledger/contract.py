"""What every ledger promises; the results are those of a real TigerBeetle server, release 0.17.9."""

from collections import Counter
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import msgspec
import pytest

from contracts.ledger_hosts import SocketLedgerServer
from internal_transfer.conformance.ledger.world import (
    LINKED,
    PENDING,
    POST,
    VOID,
    EmbeddedLedgerServer,
    TigerBeetleServer,
    World,
    balances,
    replay,
)
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.ledger import (
    AMOUNT_MAX,
    BATCH_MAX,
    BURNING,
    U128_MAX,
    AccountFlag,
    AccountResult,
    TransferFlag,
    TransferResult,
    UnsupportedError,
)
from real_servers import need

CREATED = TransferResult.CREATED
DEBITS_LIMITED = AccountFlag.DEBITS_MUST_NOT_EXCEED_CREDITS
CREDITS_LIMITED = AccountFlag.CREDITS_MUST_NOT_EXCEED_DEBITS
BANK, ALICE, BOB, UNKNOWN = 1, 2, 3, 99
U64_MAX, U32_MAX, U16_MAX = 2**64 - 1, 2**32 - 1, 2**16 - 1


@pytest.fixture(
    params=[
        "embedded, one commit per turn",
        "embedded, one commit per call",
        "embedded, small memory",
        "tigerbeetle",
        "embedded, behind a socket",
    ]
)
async def world(request, tmp_path):
    if request.param == "tigerbeetle":
        place = need("tigerbeetle")
        server = await TigerBeetleServer.open(place.address, place.cluster)
    elif request.param == "embedded, behind a socket":
        server = await SocketLedgerServer.open(tmp_path / "data")
    else:
        server = EmbeddedLedgerServer(
            tmp_path / "ledger.db",
            each_call=request.param == "embedded, one commit per call",
            remembered=0 if request.param == "embedded, small memory" else None,
        )
    yield World(server)
    await server.close()


async def fund(world: World, number: int, amount: int) -> None:
    """An account that may not be overdrawn, with this much in it."""
    await world.open_accounts(BANK)
    await world.open_accounts(number, flags=DEBITS_LIMITED)
    await world.succeed(world.plain(9_000 + number, BANK, number, amount))


@dataclass
class Repair:
    """The result as things are, and the fields that are put right after it."""

    result: str
    fields: dict[str, Any]


def repairs(*steps: tuple[str, dict[str, Any]]) -> list[Repair]:
    return [Repair(result, fields) for result, fields in steps]


# Accounts


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


async def test_accounts_are_checked_in_tigerbeetles_order(world):
    """An account that is wrong in every way gets, one repair after the other, each result in its turn."""
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


async def test_an_account_with_balances_exists_all_the_same(world):
    """The zero balances of a request are not compared with those that the account has by now."""
    await world.open_accounts(BANK, ALICE)
    await world.succeed(world.plain(1, BANK, ALICE, 5))
    [outcome] = await world.ledger.create_accounts([world.account(ALICE)])
    assert outcome.status is AccountResult.EXISTS


async def test_accounts_come_back_as_they_were_created(world):
    """Every field, at its greatest value too, is kept over a restart."""
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
    await world.server.reopen()
    [after] = await world.ledger.lookup_accounts([sent.id])
    assert before == after == msgspec.structs.replace(sent, timestamp=created.timestamp)


async def test_a_failed_account_id_is_not_burnt(world):
    """An account that was refused can be created under the same id once it is right."""
    [refused] = await world.ledger.create_accounts([world.account(ALICE, code=0)])
    [created] = await world.ledger.create_accounts([world.account(ALICE)])
    assert [refused.status, created.status] == [AccountResult.CODE_MUST_NOT_BE_ZERO, AccountResult.CREATED]


async def test_existing_accounts_tell_when_they_were_created(world):
    """`exists` comes with the timestamp of the original."""
    [created] = await world.ledger.create_accounts([world.account(ALICE)])
    [_, exists] = await world.ledger.create_accounts([world.account(BOB), world.account(ALICE)])
    assert (exists.status, exists.timestamp) == (AccountResult.EXISTS, created.timestamp)


async def test_lookups_of_accounts_keep_order_and_repeats(world):
    """Unknown ids are left out, the others come in the order asked, as often as asked."""
    await world.open_accounts(ALICE, BOB)
    found = await world.ledger.lookup_accounts([world.at(number) for number in (BOB, UNKNOWN, ALICE, BOB)])
    assert [account.id for account in found] == [world.at(number) for number in (BOB, ALICE, BOB)]


# The order of checks of transfers


async def walk(world: World, fields: dict[str, Any], steps: list[Repair]) -> None:
    """Sends a transfer again and again, repaired a little more each time; a burnt id is exchanged for a fresh one."""
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


async def test_transfers_are_checked_in_tigerbeetles_order(world):
    """A transfer that is wrong in every way gets, one repair after the other, each result in its turn."""
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


async def test_posts_are_checked_in_tigerbeetles_order(world):
    """A post that is wrong in every way gets, one repair after the other, each result in its turn."""
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
async def test_sums_never_overflow(world, before, then, result):
    """With 2^128-1 moved, one unit more is refused, the sum that overflows is named, and the id is not burnt."""
    await world.open_accounts(BANK, ALICE, BOB)
    makes = {"hold": world.hold, "plain": world.plain}
    await world.succeed(makes[before](1, BANK, ALICE, U128_MAX))
    kind, debit, credit = then
    assert await world.create(makes[kind](2, debit, credit, 1)) == [result]
    await world.succeed(makes[kind](2, debit, credit, 0))


# Two phases


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
async def test_a_hold_is_resolved_once(world, first, second, result):
    """G4: after a post or void under one id, another under another id changes nothing, and its id is not burnt."""
    await fund(world, ALICE, 100)
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
    [("post", 100, 100), ("post", 30, 30), ("post", 0, 0), ("post", AMOUNT_MAX, 100), ("void", 0, 0), ("void", 100, 0)],
)
async def test_a_resolution_moves_what_it_says_and_releases_the_rest(world, resolve, amount, moved):
    """A post moves its amount, 2^128-1 being all of it; what it does not move, and all of a void, is released."""
    await fund(world, ALICE, 100)
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
async def test_a_void_is_for_all_of_the_hold(world, amount, result):
    """A void may leave the amount 0 or repeat the hold's; any other is refused."""
    await fund(world, ALICE, 100)
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
async def test_a_resolution_sent_again_is_recognised(world, sent, again, result):
    """Amounts are compared by what they mean for the hold, not by how they were written."""
    await fund(world, ALICE, 100)
    await world.open_accounts(BOB)
    makes = {"post": world.post, "void": world.void}
    await world.succeed(world.hold(1, ALICE, BOB, 100), makes[sent[0]](2, 1, sent[1]))
    assert await world.create(makes[again[0]](2, 1, again[1])) == [result]


@pytest.mark.parametrize("field", ["user_data_128", "user_data_64", "user_data_32"])
@pytest.mark.parametrize(
    ("sent", "again", "result"),
    [(0, 0, "exists"), (0, 7, "exists"), (8, 8, "exists"), (8, 0, "different"), (0, 8, "different")],
)
async def test_a_resolution_inherits_what_it_leaves_zero(world, field, sent, again, result):
    """User data left 0 is the hold's, in what is stored and in what a repeat is compared with."""
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


async def test_a_post_before_its_hold_burns_the_post_alone(world):
    """The post's id never works again; the hold can still be made, and posted under another id."""
    await fund(world, ALICE, 100)
    await world.open_accounts(BOB)
    assert await world.create(world.post(2, 1, 100)) == ["pending_transfer_not_found"]
    await world.succeed(world.hold(1, ALICE, BOB, 100))
    assert await world.create(world.post(2, 1, 100)) == ["id_already_failed"]
    await world.succeed(world.post(3, 1, 100))


async def test_a_hold_made_again_after_it_was_posted_exists(world):
    """A hold's row does not change when it is resolved, and tells nothing of it."""
    await world.open_accounts(BANK, ALICE)
    hold = world.hold(1, BANK, ALICE, 100)
    [created] = await world.ledger.create_transfers([hold])
    await world.succeed(world.post(2, 1, 100))
    [again] = await world.ledger.create_transfers([hold])
    assert (again.status, again.timestamp) == (TransferResult.EXISTS, created.timestamp)
    assert await world.ledger.lookup_transfers([hold.id]) == [
        msgspec.structs.replace(hold, timestamp=created.timestamp)
    ]


async def test_holds_are_resolved_after_a_restart(world):
    """What was held before a restart is posted, voided and refused afterwards as if there had been none."""
    await fund(world, ALICE, 100)
    await world.open_accounts(BOB)
    await world.succeed(*(world.hold(number, ALICE, BOB, 10) for number in (1, 2, 3)))
    await world.succeed(world.post(4, 1, 10))
    await world.server.reopen()
    assert await world.create(world.void(5, 1), world.post(6, 2, 10), world.void(7, 3), world.void(8, 2)) == [
        "pending_transfer_already_posted",
        "created",
        "created",
        "pending_transfer_already_posted",
    ]
    assert await world.balances(ALICE) == (0, 20, 0, 100)


# Burnt ids and the fence


async def test_the_transient_results_burn_the_id_for_ever(world):
    """Each of the five results for things that may change leaves `id_already_failed`, also after a restart."""
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
    now_right = [world.plain(event.id - world.server.id_base, BANK, 5, 1) for event in failing]
    assert await world.create(*now_right) == ["id_already_failed"] * 5
    await world.server.reopen()
    assert await world.create(*now_right) == ["id_already_failed"] * 5
    assert await world.ledger.lookup_transfers([event.id for event in failing]) == []


async def test_a_burnt_id_is_no_hold(world):
    """A post of an id that was burnt finds nothing, and is burnt itself."""
    await world.open_accounts(BANK)
    assert await world.create(world.hold(1, BANK, UNKNOWN, 1), world.post(2, 1, 1), world.post(2, 1, 1)) == [
        "credit_account_not_found",
        "pending_transfer_not_found",
        "id_already_failed",
    ]


async def test_other_results_leave_the_id_usable(world):
    """A transfer that is refused for its own faults can be sent again, repaired, under its id."""
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


FENCE = 900


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
async def test_the_fence_tells_whether_the_hold_was_made(world, life, answer):
    """A void under the hold's own id, of a hold that cannot exist, either burns the id or tells that it is taken."""
    await fund(world, ALICE, 100)
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


# Batches and chains


async def test_an_empty_batch_does_nothing(world):
    """No events, no results."""
    assert await world.ledger.create_accounts([]) == []
    assert await world.ledger.create_transfers([]) == []
    assert await world.ledger.lookup_accounts([]) == []
    assert await world.ledger.lookup_transfers([]) == []


async def test_later_events_of_a_batch_see_the_earlier_ones(world):
    """A hold, its repeat, its post and a second post in one call get their results one after the other."""
    await fund(world, ALICE, 100)
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


async def test_batches_have_a_greatest_size(world):
    """8,189 events go through in one call; one more is refused before anything is done."""
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
async def test_unused_features_of_transfers_are_refused_before_anything_is_done(world, fields):
    """A batch with one such transfer raises, and the good transfer before it is not created."""
    await world.open_accounts(BANK, ALICE)
    with pytest.raises(UnsupportedError):
        await world.ledger.create_transfers([world.plain(1, BANK, ALICE, 1), world.plain(2, BANK, ALICE, 1, **fields)])
    assert await world.ledger.lookup_transfers([world.at(1)]) == []


@pytest.mark.parametrize("flags", [AccountFlag.IMPORTED, AccountFlag.CLOSED])
async def test_unused_features_of_accounts_are_refused_before_anything_is_done(world, flags):
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
async def test_numbers_wider_than_their_field_are_refused_before_anything_is_done(world, fields):
    """A number that TigerBeetle could not even carry is a `ValueError`, and the event before it is not created."""
    await world.open_accounts(BANK, ALICE)
    with pytest.raises(ValueError, match=r"wider|bits"):
        await world.ledger.create_transfers([world.plain(1, BANK, ALICE, 1), world.plain(2, BANK, ALICE, 1, **fields)])
    with pytest.raises(ValueError, match=r"wider|bits"):
        await world.ledger.create_accounts([world.account(BOB), world.account(5, **fields)])
    assert await world.ledger.lookup_transfers([world.at(1)]) == []
    assert await world.ledger.lookup_accounts([world.at(BOB)]) == []


async def test_a_chain_is_made_as_a_whole(world):
    """All members of a chain are created, and what follows it is by itself."""
    await world.open_accounts(BANK, ALICE)
    assert await world.create(
        world.plain(1, BANK, ALICE, 1, flags=LINKED), world.plain(2, BANK, ALICE, 1), world.plain(3, BANK, BANK, 1)
    ) == ["created", "created", "accounts_must_be_different"]


async def test_a_chain_fails_as_a_whole(world):
    """The member that fails keeps its result, the others say `linked_event_failed`, and nothing of them remains."""
    await fund(world, ALICE, 100)
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


async def test_in_a_chain_only_the_member_with_the_transient_result_is_burnt(world):
    """The burnt member stays burnt though its chain was taken back; the others can be sent again."""
    await fund(world, ALICE, 100)
    await world.open_accounts(BOB)
    chain = [
        world.hold(1, ALICE, BOB, 60, flags=LINKED),
        world.hold(2, ALICE, BOB, 60, flags=LINKED),
        world.hold(3, ALICE, BOB, 1),
    ]
    assert await world.create(*chain) == ["linked_event_failed", "exceeds_credits", "linked_event_failed"]
    assert await world.create(*chain) == ["linked_event_failed", "id_already_failed", "linked_event_failed"]
    await world.server.reopen()
    assert await world.create(*chain) == ["linked_event_failed", "id_already_failed", "linked_event_failed"]
    await world.succeed(world.hold(1, ALICE, BOB, 60), world.hold(3, ALICE, BOB, 1))


async def test_a_chain_must_end_within_the_batch(world):
    """A chain whose last event is linked fails: that event with `linked_event_chain_open`, which goes first."""
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


async def test_a_chain_that_succeeded_does_not_succeed_again(world):
    """Sent again, its first member says `exists` and the rest `linked_event_failed`, though they exist."""
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


async def test_accounts_are_created_in_chains_too(world):
    """One bad account of a chain takes the others with it; a good chain goes through."""
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


async def test_a_probe_tells_what_became_of_a_hold_and_changes_nothing(world):
    """A chain of a void under a new id and a transfer that must fail says by its first result how the hold stands."""
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


# Timestamps and history


async def test_timestamps_rise_with_every_event(world):
    """Each event gets the next nanosecond, failed ones too; `exists` gets the original's."""
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


async def test_history_is_read_in_order_page_by_page(world):
    """Transfers come by rising timestamp from any point on, and the newest by falling."""
    await world.open_accounts(BANK, ALICE)
    outcomes = await world.ledger.create_transfers([world.plain(9 - n, BANK, ALICE, n) for n in range(8)])
    timestamps = [outcome.timestamp for outcome in outcomes]
    assert [transfer.timestamp for transfer in await world.history(timestamps[0] - 1)] == timestamps
    assert [transfer.timestamp for transfer in await world.ledger.transfers_after(timestamps[3], 2)] == timestamps[4:6]
    newest = await world.ledger.newest_transfers(3)
    assert [transfer.timestamp for transfer in newest] == timestamps[:-4:-1]
    assert await world.ledger.transfers_after(U64_MAX, 5) == []


async def test_transfers_come_back_as_they_were_created(world):
    """Every field, at its greatest value too, is kept over a restart; look-ups keep order and repeats."""
    await world.open_accounts(BANK, ALICE, ledger=U32_MAX)
    fields = {"user_data_128": U128_MAX, "user_data_64": U64_MAX, "user_data_32": U32_MAX}
    hold = world.hold(1, BANK, ALICE, U128_MAX, ledger=U32_MAX, code=U16_MAX, **fields)
    post = world.post(2, 1, 5, user_data_64=2**63)
    held, posted = await world.ledger.create_transfers([hold, post])
    await world.server.reopen()
    expected_hold = msgspec.structs.replace(hold, timestamp=held.timestamp)
    expected_post = msgspec.structs.replace(
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


async def test_replaying_the_history_gives_the_balances(world):
    """G1 and G12: replayed from nothing the transfers give every balance, and per ledger debits equal credits."""
    await fund(world, ALICE, 1_000)
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
    await world.server.reopen()
    assert await world.ledger.lookup_accounts([world.at(number) for number in numbers]) == accounts


# Limits


async def test_racing_spends_never_overdraw(world):
    """G3: of a batch of holds for more than there is, as many go through as the balance covers, and none more."""
    await fund(world, ALICE, 100)
    await world.open_accounts(BOB)
    results = Counter(await world.create(*(world.hold(number, ALICE, BOB, 30) for number in range(1, 11))))
    assert results == {CREATED: 3, TransferResult.EXCEEDS_CREDITS: 7}
    assert await world.available(ALICE) == 10
    await world.succeed(world.post(21, 1, 30), world.void(22, 2))
    assert await world.available(ALICE) == 40
    assert await world.create(world.plain(23, ALICE, BOB, 41), world.plain(24, ALICE, BOB, 40)) == [
        "exceeds_credits",
        "created",
    ]
    assert await world.available(ALICE) == 0


async def test_money_on_its_way_in_cannot_be_spent(world):
    """Pending credits do not count towards what an account may spend; posted ones do."""
    await fund(world, ALICE, 0)
    await world.open_accounts(BOB)
    await world.succeed(world.hold(1, BANK, ALICE, 50))
    assert await world.create(world.hold(2, ALICE, BOB, 1)) == ["exceeds_credits"]
    await world.succeed(world.post(3, 1, 50), world.hold(4, ALICE, BOB, 50))


async def test_the_twin_limit_holds_credits_to_debits(world):
    """An account whose credits must not exceed its debits takes in no more than it gave."""
    await world.open_accounts(BANK)
    await world.open_accounts(ALICE, flags=CREDITS_LIMITED)
    await world.succeed(world.plain(1, ALICE, BANK, 10), world.hold(2, BANK, ALICE, 6))
    assert await world.create(world.hold(3, BANK, ALICE, 5), world.hold(4, BANK, ALICE, 4)) == [
        "exceeds_debits",
        "created",
    ]
    assert await world.balances(ALICE) == (0, 10, 10, 0)


# What is the embedded ledger's own


async def test_timestamps_rise_over_restarts_and_when_the_clock_steps_back(tmp_path):
    """The ledger goes on from the last timestamp it gave, to a failed event too, whatever the wall clock says."""
    server = EmbeddedLedgerServer(tmp_path / "ledger.db", each_call=False)
    world = World(server)
    await world.open_accounts(BANK, ALICE)
    seen = []
    for number, step_ms in enumerate((0, 5_000, -3_600_000, 0, 7_200_000), start=1):
        server.clock.ms += step_ms
        outcomes = await world.ledger.create_transfers(
            [world.plain(number, BANK, ALICE, 1), world.plain(50, BANK, BANK, 1)]
        )
        seen += [outcome.timestamp for outcome in outcomes]
        await server.reopen()
    assert all(earlier < later for earlier, later in pairwise(seen))
    assert seen[-2] == server.clock.ms * 1_000_000
    await server.close()


async def test_a_turn_that_is_taken_back_leaves_nothing(tmp_path):
    """Accounts, balances, holds and burnt ids of a failed turn are gone, in memory and on disk; the rest stays."""
    server = EmbeddedLedgerServer(tmp_path / "ledger.db", each_call=False)
    world = World(server)
    await fund(world, ALICE, 100)
    await world.succeed(world.hold(1, ALICE, BANK, 10))
    await server.settle()
    before = await world.balances(ALICE)
    await server.settle()

    await world.open_accounts(BOB)
    await world.succeed(world.hold(2, ALICE, BOB, 10), world.post(3, 1, 10))
    assert await world.create(world.plain(4, UNKNOWN, BOB, 1)) == ["debit_account_not_found"]
    with pytest.raises(ZeroDivisionError), server.database.call():
        _ = 1 // 0
    with pytest.raises(Unavailable, match="took a turn back"):
        await server.settle()

    for _ in range(2):
        assert await world.balances(ALICE) == before
        assert await world.ledger.lookup_accounts([BOB]) == []
        assert [transfer.id for transfer in await world.history()] == [9_000 + ALICE, 1]
        await server.reopen()
    await world.succeed(world.plain(4, BANK, ALICE, 1), world.void(5, 1), world.hold(2, ALICE, BANK, 1))
    await server.close()
