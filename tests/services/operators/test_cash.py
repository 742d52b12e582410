import msgspec
import pytest

from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.cash import CashAct, cash_account
from internal_transfer.domain.identifier import cash_id
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.ledger import LedgerAccount
from internal_transfer.services.operators.audit import Act
from internal_transfer.services.operators.cash import Teller
from internal_transfer.simulation.faults import LoseAnswer
from services.desks import ACTOR, Desks, cash
from services.stack import ACCOUNT_TYPES, Stack


@pytest.fixture
def desks(stack):
    return Desks(stack)


async def far_side(stack, act, asset="USDT"):
    [row] = await stack.ledger.lookup_accounts([ledger_account_id(cash_account(act, asset))])
    return row


async def test_money_comes_in_and_goes_out_through_the_far_sides(stack, desks):
    """A deposit is debited on the asset's deposit account, a withdrawal credited on its withdrawal account."""
    came = await desks.cash.deposit(cash("alice", "100.5", reference="in"), actor=ACTOR)
    went = await desks.cash.withdraw(cash("alice", "40", reference="out"), actor=ACTOR)
    assert isinstance(came, Act)
    assert isinstance(went, Act)
    assert (came.action, came.outcome, came.subject) == ("deposit", "created", "in")
    assert (went.action, went.outcome, went.subject) == ("withdrawal", "created", "out")
    assert await stack.posted("funding") == 60_50
    deposits = await far_side(stack, CashAct.DEPOSIT)
    withdrawals = await far_side(stack, CashAct.WITHDRAWAL)
    assert (deposits.debits_posted, deposits.code, deposits.flags) == (100_50, 65_001, 0)
    assert (withdrawals.credits_posted, withdrawals.code, withdrawals.flags) == (40_00, 65_002, 0)
    assert await desks.entries() == [
        ("deposit", "in", "decided"),
        ("deposit", "in", "created"),
        ("withdrawal", "out", "decided"),
        ("withdrawal", "out", "created"),
    ]
    assert [line.account.type for line in await stack.inquiry.balances(Owner("alice"))] == ["funding"]


async def test_a_reference_works_once(stack, desks):
    """Repeating a reference exactly returns the first result; nothing moves again."""
    first = await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    again = await desks.cash.deposit(cash("alice", "1.00", reference="r", reason="sent twice"), actor=ACTOR)
    assert (first.outcome, again.outcome) == ("created", "exists")
    assert await stack.posted("funding") == 1_00


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": "2"}, "amount"),
        ({"owner": "bob"}, "account"),
        ({"account_type": "earn"}, "account"),
        ({"asset": "BTC"}, "account"),
    ],
)
async def test_a_reference_with_other_content_is_refused(stack, desks, changes, field):
    """A reference stands for its content for ever; the refusal names what differs."""
    await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    other = {"owner": "alice", "amount": "1", "reference": "r"} | changes
    answer = await desks.cash.deposit(cash(**other), actor=ACTOR)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.details[0].field) == (Code.IDEMPOTENCY_KEY_REUSED, field)
    assert await stack.posted("funding") == 1_00


async def test_a_reference_of_a_deposit_is_none_of_a_withdrawal(desks):
    """Both share the references."""
    await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    answer = await desks.cash.withdraw(cash("alice", "1", reference="r"), actor=ACTOR)
    assert answer.code is Code.IDEMPOTENCY_KEY_REUSED


async def test_the_ledger_keeps_the_balance(desks):
    """More than is available is refused by the ledger; the reference is then used up, and the refusal says so."""
    await desks.fund("alice", "1")
    refused = await desks.cash.withdraw(cash("alice", "1.01", reference="out"), actor=ACTOR)
    assert refused.code is Code.INSUFFICIENT_BALANCE
    await desks.fund("alice", "5")
    again = await desks.cash.withdraw(cash("alice", "1.01", reference="out"), actor=ACTOR)
    assert again.code is Code.INSUFFICIENT_BALANCE
    assert "use a new reference" in again.message
    assert (await desks.entries())[-1] == ("withdrawal", "out", "refused: INSUFFICIENT_BALANCE")
    assert (await desks.cash.withdraw(cash("alice", "1.01", reference="out-2"), actor=ACTOR)).outcome == "created"


async def test_a_lost_answer_is_found_by_the_same_reference(stack, desks):
    """After an unknown outcome the same call finds out, and moves nothing twice."""
    stack.scripts[System.LEDGER].add("create_transfers", LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    assert (await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)).outcome == "exists"
    assert await stack.posted("funding") == 1_00


async def test_nothing_moves_without_an_audit_entry(stack, desks):
    """Where the audit chain cannot be written, no money moves."""

    async def unavailable(_):
        raise Unavailable(System.OPERATIONS, "away")

    stack.operations.append_audit = unavailable
    with pytest.raises(Unavailable):
        await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    assert await stack.ledger.lookup_transfers([cash_id("r")]) == []


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"reason": ""}, Code.INVALID_REQUEST, "reason"),
        ({"reference": ""}, Code.INVALID_REQUEST, "reference"),
        ({"reference": "ü"}, Code.INVALID_REQUEST, "reference"),
        ({"owner": "#cash"}, Code.INVALID_REQUEST, "user"),
        ({"asset": "XXX"}, Code.INVALID_ASSET, "asset"),
        ({"asset": "usdt"}, Code.INVALID_ASSET, "asset"),
        ({"asset": "OLD"}, Code.INVALID_ASSET, "asset"),
        ({"account_type": "none"}, Code.INVALID_ACCOUNT, "account"),
        ({"account_type": "spot"}, Code.INVALID_ACCOUNT, "account"),
        ({"amount": "1e3"}, Code.INVALID_AMOUNT, "amount"),
        ({"amount": "0.00"}, Code.INVALID_AMOUNT, "amount"),
        ({"amount": "1" * 129}, Code.INVALID_AMOUNT, "amount"),
        ({"amount": "0.001"}, Code.INVALID_PRECISION, "amount"),
        ({"amount": str(AMOUNT_UNITS_MAX)}, Code.AMOUNT_TOO_LARGE, "amount"),
    ],
)
async def test_what_is_wrong_is_refused_before_anything_is_recorded(desks, changes, code, field):
    """Each refusal names its field, and leaves neither an entry nor an account behind."""
    given = {"owner": "alice", "amount": "1", "reference": "r"} | changes
    answer = await desks.cash.deposit(cash(**given), actor=ACTOR)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.details[0].field) == (code, field)
    assert await desks.entries() == []


async def test_money_with_a_core_is_out_of_reach(desks):
    """Where a core holds the balance, the refusal names the transfer that has to come first, or after."""
    spot = cash("alice", "1", reference="r", account_type="spot")
    assert "move it out with a transfer first" in (await desks.cash.withdraw(spot, actor=ACTOR)).message
    assert "move money there with a transfer" in (await desks.cash.deposit(spot, actor=ACTOR)).message


async def test_what_is_retired_can_still_be_emptied(tmp_path):
    """A closed asset or account type takes no deposits, but its money can go out."""
    stack = Stack(tmp_path / "db")
    await stack.start()
    desks = Desks(stack)
    await desks.fund("alice", "5")
    closed = {name: msgspec.structs.replace(kind, closed=True) for name, kind in ACCOUNT_TYPES.items()}
    rules = msgspec.structs.replace(stack.rules, account_types=closed)
    desks.cash = Teller(stack.ports, rules, driver=stack.driver, audit=desks.audit)
    refused = await desks.cash.deposit(cash("alice", "1", reference="in"), actor=ACTOR)
    assert refused.code is Code.INVALID_ACCOUNT
    assert (await desks.cash.withdraw(cash("alice", "5", reference="out"), actor=ACTOR)).outcome == "created"
    await stack.stop()


async def test_an_answer_that_no_ledger_should_give_is_unknown(stack, desks):
    """Where the account is of another ledger than its asset, the answer is neither yes nor no, and is counted."""
    account = Account(Owner("alice"), "funding", "USDT")
    open_accounts = stack.driver.open_accounts

    async def with_another_ledger(accounts):
        await open_accounts(accounts[1:])
        await stack.ledger.create_accounts([LedgerAccount(id=ledger_account_id(account), ledger=77, code=1)])

    stack.driver.open_accounts = with_another_ledger
    with pytest.raises(OutcomeUnknown):
        await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    counted = stack.telemetry.unexpected.labels("ledger", "accounts_must_have_the_same_ledger")
    assert counted._value.get() == 1


async def test_an_account_that_the_ledger_has_otherwise_stops_the_deposit(stack, desks):
    """Accounts are opened before money moves, and one that exists with other contents stops it."""
    account = Account(Owner("alice"), "funding", "USDT")
    await stack.ledger.create_accounts([LedgerAccount(id=ledger_account_id(account), ledger=1, code=42)])
    with pytest.raises(OutcomeUnknown):
        await desks.cash.deposit(cash("alice", "1", reference="r"), actor=ACTOR)
    assert await stack.ledger.lookup_transfers([cash_id("r")]) == []
