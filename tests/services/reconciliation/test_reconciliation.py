import json

import apsw
import msgspec
import pytest

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.cash import CashAct, cash_account
from internal_transfer.domain.identifier import TransferId, cash_id, hold_id, post_id
from internal_transfer.domain.leg import Action, Command, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.transfer import Decision, Hold, Need, Status, Transfer
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.operators.audit import Act
from internal_transfer.services.reconciliation import reconciliation as module
from internal_transfer.services.reconciliation.consistency import differences
from internal_transfer.simulation.faults import FailBefore
from services.desks import ACTOR, Desks, cash
from services.stack import take_back

ALICE = Account(Owner("alice"), "funding", "USDT")
SPOT = Account(Owner("alice"), "spot", "USDT")
BALANCE_COLUMNS = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")


@pytest.fixture
async def desks(stack):
    desks = Desks(stack, page_most=3)
    await desks.fund("alice", "100")
    return desks


async def found(desks):
    """The kinds of a run's items."""
    return sorted(item.kind for item in (await desks.reconciliation.run()).items)


async def tamper(stack, account, **sums):
    """Changes an account's sums in the table itself, as nobody may."""
    await stack.database.durable()
    for column, change in sums.items():
        assert column in BALANCE_COLUMNS
        key = ledger_account_id(account).to_bytes(16, "big")
        row = stack.database.connection.execute(f"SELECT {column} FROM ledger_account WHERE id = ?", (key,)).fetchone()
        units = int.from_bytes(row[0], "big") + change
        stack.database.connection.execute(
            f"UPDATE ledger_account SET {column} = ? WHERE id = ?", (units.to_bytes(16, "big"), key)
        )
    take_back(stack.database)
    await stack.clock.settle()


async def mark(stack, transfer, **values):
    [recorded] = await stack.store.record([Change(transfer.revision, msgspec.structs.replace(transfer, **values))])
    assert recorded is not None
    return recorded


async def test_a_working_service_is_clean(stack, desks):
    """Finished, failed, open and refused transfers of every kind leave nothing to report."""
    for number, places in enumerate(
        ({"target": "spot"}, {"target": "earn"}, {"source": "spot", "target": "margin"}, {"target": "futures"})
    ):
        await stack.accepted(f"k{number}", "3", **places)
    await stack.accepted("too-much", "5000")
    await desks.cash.withdraw(cash("alice", "2", reference="out"), actor=ACTOR)
    stack.core.mode = CoreMode.REFUSE
    await stack.accepted("refused")
    stack.core.mode = CoreMode.WITHHOLD
    await stack.accepted("waiting")
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    await stack.accepted("without-hold")
    result = await desks.reconciliation.run()
    assert result.items == ()
    assert result.clean
    assert (result.transfers, result.core_entries) == (8, 3)
    assert result.ledger_transfers == len(await stack.ledger_rows())


async def test_the_report_is_stored_and_measured(stack, desks):
    """A run leaves its report and sets the metrics, clean or not."""
    assert await desks.reconciliation.last() is None
    await desks.reconciliation.run()
    report = await desks.reconciliation.last()
    assert (report.clean, json.loads(report.items), report.at) == (True, [], stack.clock.now_ms())
    await tamper(stack, ALICE, debits_posted=1)
    result = await desks.reconciliation.run()
    report = await desks.reconciliation.last()
    assert not report.clean
    assert [item["kind"] for item in json.loads(report.items)] == [item.kind for item in result.items]
    assert stack.telemetry.reconciliation_items._value.get() == len(result.items)
    assert stack.telemetry.reconciliation_at._value.get() == stack.clock.now_ms() / 1000


async def test_a_balance_that_its_transfers_do_not_give(stack, desks):
    """One changed sum is found by the replay, and as a break of conservation."""
    await tamper(stack, ALICE, credits_posted=5)
    result = await desks.reconciliation.run()
    assert [item.kind for item in result.items] == ["balance_differs", "conservation"]
    assert result.items[0].account == str(ledger_account_id(ALICE))
    assert "-0.05 USDT posted and 0 USDT pending" in result.items[1].detail


async def test_two_errors_that_cancel_each_other(stack, desks):
    """Money that was shifted between accounts keeps the sum, and each account is found."""
    await tamper(stack, ALICE, credits_posted=5)
    await tamper(stack, cash_account(CashAct.DEPOSIT, "USDT"), debits_posted=5)
    assert await found(desks) == ["balance_differs", "balance_differs"]


async def test_pending_sums_are_conserved_too(stack, desks):
    """A pending sum that no hold gives is found."""
    await tamper(stack, ALICE, debits_pending=7)
    result = await desks.reconciliation.run()
    assert "0 USDT posted and 0.07 USDT pending" in result.items[-1].detail


async def test_a_negative_balance(stack, desks):
    """A ledger-held account below zero is found, with its figure."""
    await tamper(stack, ALICE, debits_posted=101_00)
    result = await desks.reconciliation.run()
    [item] = [item for item in result.items if item.kind == "negative_balance"]
    assert item.detail == "-1 USDT are available"


async def test_an_asset_that_is_not_configured_any_more(stack, desks):
    """What is wrong in the ledger of an asset that is gone from the settings is told in units."""
    await tamper(stack, ALICE, debits_posted=101_00)
    desks.reconciliation = module.Reconciliation(
        stack.ports, msgspec.structs.replace(stack.rules, assets={}), driver=stack.driver
    )
    details = [item.detail for item in (await desks.reconciliation.run()).items]
    assert "-100 units of ledger 1 are available" in details


@pytest.mark.usefixtures("desks")
async def test_a_core_held_mirror_may_be_negative(stack):
    """A core that moves money by itself makes its mirror negative, which is no error."""
    transfer = await stack.accepted("in", "1")
    await stack.stop()
    with apsw.Connection(str(stack.path)) as core:
        core.execute("UPDATE core_balance SET posted = '10000' WHERE type = 'spot'")
    await stack.start()
    back = await stack.accepted("out", "50", source="spot", target="funding")
    assert (transfer.status, back.status) == (Status.SUCCESS, Status.SUCCESS)
    assert await stack.posted("spot") < 0
    assert await found(Desks(stack)) == []


async def test_a_hold_that_no_transfer_accounts_for(stack, desks):
    """A hold without a record, as after a restore of an older store, is found."""
    await stack.driver.open_accounts([SPOT])
    stray = LedgerTransfer(
        id=hold_id(TransferId(5)),
        debit_account_id=ledger_account_id(ALICE),
        credit_account_id=ledger_account_id(SPOT),
        amount=1,
        ledger=1,
        code=1,
        flags=TransferFlag.PENDING,
    )
    await stack.ledger.create_transfers([stray])
    result = await desks.reconciliation.run()
    assert [(item.kind, item.request_id) for item in result.items] == [("extra_hold", "5")]


async def test_money_past_the_far_sides(stack, desks):
    """Plain transfers that are no deposit or withdrawal change the total in a way that nobody may."""
    await stack.driver.open_accounts([SPOT, cash_account(CashAct.WITHDRAWAL, "USDT")])
    funding, spot = ledger_account_id(ALICE), ledger_account_id(SPOT)
    far = ledger_account_id(cash_account(CashAct.DEPOSIT, "USDT"))
    plain = LedgerTransfer(id=7, debit_account_id=spot, credit_account_id=funding, amount=1, ledger=1, code=1)
    between = LedgerTransfer(
        id=cash_id("x"), debit_account_id=spot, credit_account_id=funding, amount=1, ledger=1, code=2
    )
    unknown = LedgerTransfer(
        id=cash_id("y"), debit_account_id=far, credit_account_id=funding, amount=1, ledger=1, code=9
    )
    held = LedgerTransfer(
        id=hold_id(TransferId(6)),
        debit_account_id=far,
        credit_account_id=funding,
        amount=1,
        ledger=1,
        code=1,
        flags=TransferFlag.PENDING,
    )
    outcomes = await stack.ledger.create_transfers([plain, between, unknown, held])
    assert {outcome.status for outcome in outcomes} == {"created"}
    assert await found(desks) == ["extra_hold", *["unexpected_transfer"] * 4]


async def test_a_resolution_that_the_record_does_not_know(stack, desks):
    """A post under an attempt that was never recorded is found, and so is the state that it leaves."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    foreign = LedgerTransfer(
        id=post_id(transfer.id, 9),
        pending_id=hold_id(transfer.id),
        amount=100,
        flags=TransferFlag.POST_PENDING_TRANSFER,
    )
    await stack.ledger.create_transfers([foreign])
    assert await found(desks) == ["extra_resolution"]


async def test_an_account_of_no_type_and_of_another_limit(stack, desks):
    """Accounts whose code or flags are not those of a configured type are found."""
    stranger = LedgerAccount(id=42, ledger=1, code=77)
    unlimited = LedgerAccount(id=43, ledger=1, code=1)
    await stack.ledger.create_accounts([stranger, unlimited])
    moves = [
        LedgerTransfer(
            id=cash_id(f"m{account}"),
            debit_account_id=account,
            credit_account_id=ledger_account_id(ALICE),
            amount=1,
            ledger=1,
            code=2,
        )
        for account in (42, 43)
    ]
    await stack.ledger.create_transfers(moves)
    kinds = await found(desks)
    assert kinds.count("unknown_account_type") == 1
    assert kinds.count("account_flags") == 1
    assert kinds.count("negative_balance") == 1


async def test_an_account_that_is_gone(stack, desks):
    """Transfers that name an account which does not exist are found."""
    await stack.database.durable()
    key = ledger_account_id(ALICE).to_bytes(16, "big")
    stack.database.connection.execute("DELETE FROM ledger_account WHERE id = ?", (key,))
    take_back(stack.database)
    await stack.clock.settle()
    assert await found(desks) == ["missing_account"]


async def test_a_resolution_whose_hold_is_gone(stack, desks):
    """A post without its hold, as in a ledger that was tampered with, is found."""
    transfer = await stack.accepted("k")
    await stack.database.durable()
    key = hold_id(transfer.id).to_bytes(16, "big")
    stack.database.connection.execute("DELETE FROM ledger_transfer WHERE id = ?", (key,))
    kinds = await found(desks)
    assert "resolution_without_hold" in kinds
    assert "missing_hold" in kinds


async def test_a_core_effect_of_an_unknown_transfer(stack, desks):
    """What a core did for a transfer that nobody asked for is found, page by page."""
    commands = [
        Command(TransferId(number), "alpha", Side.TARGET, Action.APPLY, "USDT", 5, None, SPOT) for number in range(3, 8)
    ]
    await stack.core.tell(commands)
    result = await desks.reconciliation.run()
    assert [(item.kind, item.request_id) for item in result.items] == [
        ("core_entry_without_transfer", str(number)) for number in range(3, 8)
    ]


async def test_a_ledger_that_is_older_than_the_store(stack, desks):
    """A timestamp that the store has seen and the ledger does not have says that one of them was restored."""
    await stack.accepted("k")
    await stack.database.durable()
    seen = await stack.store.ledger_seen()
    stack.database.connection.execute("DELETE FROM ledger_transfer WHERE timestamp = ?", (seen,))
    kinds = await found(desks)
    assert "ledger_older_than_store" in kinds
    assert "mismatched_state" in kinds


async def test_break_glass_is_reported_until_the_core_confirms(stack, desks):
    """A post against missing confirmation stays in the report until the core says that it applied the leg."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    await desks.desk.post(transfer.id, reason="core restored by hand", actor=ACTOR, break_glass=True)
    result = await desks.reconciliation.run()
    assert [(item.kind, item.request_id) for item in result.items] == [("break_glass_post", str(transfer.id))]
    stack.core.mode = CoreMode.NORMAL
    await stack.core.tell([Command(transfer.id, "alpha", Side.TARGET, Action.APPLY, "USDT", 100, None, SPOT)])
    assert await found(desks) == []


async def test_an_acknowledged_transfer_is_left_out(stack, desks):
    """What was put right in the core by hand is no news; the core applying it after all is."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer, other = await stack.accepted("k"), await stack.accepted("other")
    for each in (transfer, other):
        await desks.desk.post(each.id, reason="core restored by hand", actor=ACTOR, break_glass=True)
    assert isinstance(await desks.desk.acknowledge(transfer.id, reason="booked by hand", actor=ACTOR), Act)
    result = await desks.reconciliation.run()
    assert [(item.kind, item.request_id) for item in result.items] == [("break_glass_post", str(other.id))]
    stack.core.mode = CoreMode.NORMAL
    for each in (transfer, other):
        await stack.core.tell([Command(each.id, "alpha", Side.TARGET, Action.APPLY, "USDT", 100, None, SPOT)])
    result = await desks.reconciliation.run()
    assert [(item.kind, item.request_id) for item in result.items] == [("applied_twice", str(transfer.id))]


async def test_without_the_audit_chain_there_is_no_report(stack, desks):
    """Whether a transfer was acknowledged has to be known, so a chain that does not answer fails the run."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    await desks.desk.post(transfer.id, reason="core restored by hand", actor=ACTOR, break_glass=True)
    stack.scripts[System.OPERATIONS].add("audit_about", FailBefore())
    with pytest.raises(Unavailable):
        await desks.reconciliation.run()


async def test_a_transfer_in_flight_is_no_drift(stack, desks):
    """A transfer that finishes while ledger and core are asked is looked at again, and no difference is found."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    look = stack.driver.look
    late = iter([True])

    async def finished_meanwhile(transfers):
        if next(late, False):
            # What is read below is newer than the record that it will be compared with.
            await desks.desk.void(transfer.id, reason="r", actor=ACTOR)
            looked = await look(transfers)
            return [(Hold.ABSENT, rows) for _, rows in looked]
        return await look(transfers)

    desks.reconciliation = module.Reconciliation(stack.ports, stack.rules, driver=_Looking(finished_meanwhile))
    assert await found(desks) == []


async def test_a_transfer_that_never_stands_still_is_left_to_the_next_run(stack, desks):
    """A record that moves at every look is not judged."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    look = stack.driver.look

    async def moving(transfers):
        now = await stack.transfer(transfer.id)
        await mark(stack, now, attempts=now.attempts + 1)
        return [(Hold.ABSENT, rows) for _, rows in await look(transfers)]

    desks.reconciliation = module.Reconciliation(stack.ports, stack.rules, driver=_Looking(moving))
    assert await found(desks) == []
    absent = _Looking(lambda transfers: _absent(look, transfers))
    desks.reconciliation = module.Reconciliation(stack.ports, stack.rules, driver=absent)
    assert await found(desks) == ["missing_hold"]


class _Looking:
    """A driver that is only looked through."""

    def __init__(self, look):
        self.look = look


async def _absent(look, transfers):
    return [(Hold.ABSENT, rows) for _, rows in await look(transfers)]


async def test_balances_that_move_while_they_are_read(stack, desks):
    """An account whose transfers go on during the run is held against every balance that it had meanwhile."""
    lookup, busy = stack.ledger.lookup_accounts, iter(range(3))

    async def busy_lookup(ids):
        number = next(busy, None)
        if number is None:
            return await lookup(ids)
        for side in range(4):
            await desks.fund("alice", "1", reference=f"{number}-{side}-before")
        accounts = await lookup(ids)
        for side in range(4):
            await desks.fund("alice", "1", reference=f"{number}-{side}-after")
        return accounts

    stack.ledger.lookup_accounts = busy_lookup
    assert await found(desks) == []
    assert next(busy) == 1


async def test_a_wrong_balance_of_a_busy_account(stack, desks):
    """A wrong account that moves during the run is found; the amount is not told."""
    await tamper(stack, ALICE, credits_posted=5)
    lookup = stack.ledger.lookup_accounts

    async def busy_lookup(ids):
        accounts = await lookup(ids)
        await desks.fund("alice", "1", reference=f"x{len(await stack.ledger_rows())}")
        return accounts

    stack.ledger.lookup_accounts = busy_lookup
    assert await found(desks) == ["balance_differs"]


async def test_more_items_than_are_listed(stack, desks, monkeypatch):
    """Beyond the bound items are counted, not kept."""
    monkeypatch.setattr(module, "ITEMS_MAX", 2)
    await stack.core.tell(
        [
            Command(TransferId(number), "alpha", Side.TARGET, Action.APPLY, "USDT", 5, None, SPOT)
            for number in range(3, 8)
        ]
    )
    result = await desks.reconciliation.run()
    assert (len(result.items), result.items_total, result.clean) == (2, 5, False)


async def test_an_entry_that_is_applied_and_reversed_is_one_item(stack, desks):
    """Two entries about one unknown transfer on two pages are reported once where they say the same."""
    desks.reconciliation = module.Reconciliation(stack.ports, stack.rules, driver=stack.driver, page_most=1)
    for core in ("alpha", "beta"):
        await stack.core.tell([Command(TransferId(3), core, Side.TARGET, Action.APPLY, "USDT", 5, None, SPOT)])
    assert await found(desks) == ["core_entry_without_transfer"]


async def test_a_system_that_is_away_makes_no_report(stack, desks):
    """Half a comparison would be none, so the failure is told instead."""
    stack.scripts[System.LEDGER].add("transfers_after", FailBefore())
    with pytest.raises(Unavailable):
        await desks.reconciliation.run()
    assert await desks.reconciliation.last() is None


def transfer_of(status, *, leg=LegState.APPLIED, **values):
    return Transfer(
        id=TransferId(1),
        owner=Owner("alice"),
        key="k",
        source=ALICE,
        target=SPOT,
        amount=100,
        memo=None,
        legs=(Leg(Side.TARGET, "alpha", leg),),
        created_at=0,
        updated_at=0,
        due_at=0,
        status=status,
        **values,
    )


def said(outcome, action=Action.APPLY, *, amount=100, side=Side.TARGET):
    return Verdict(TransferId(1), side, action, outcome, "", "USDT", amount, None, SPOT)


APPLIED, REVERSED = said(Outcome.APPLIED), said(Outcome.REVERSED, Action.REVERSE)
DECIDED_POST = {"decision": Decision.POST}


@pytest.mark.parametrize(
    ("transfer", "hold", "verdicts", "kinds"),
    [
        (transfer_of(Status.REQUESTING), Hold.ABSENT, [], []),
        (transfer_of(Status.REQUESTING), Hold.HELD, [], []),
        (transfer_of(Status.REQUESTING), Hold.FOREIGN, [], ["foreign_hold"]),
        (transfer_of(Status.REQUESTING), Hold.HELD, [APPLIED], ["core_effect_without_hold"]),
        (transfer_of(Status.REQUESTING), Hold.HELD, [APPLIED, REVERSED], []),
        (transfer_of(Status.PENDING), Hold.HELD, [APPLIED], []),
        (transfer_of(Status.PENDING), Hold.POSTED, [APPLIED], []),
        (transfer_of(Status.PENDING), Hold.HELD, [], ["missing_core_effect"]),
        (transfer_of(Status.PENDING, leg=LegState.ASKED), Hold.HELD, [], []),
        (transfer_of(Status.PENDING), Hold.ABSENT, [APPLIED], ["missing_hold"]),
        (transfer_of(Status.PENDING, needs_person=Need.CORE_CONTRADICTION), Hold.HELD, [APPLIED], []),
        (
            transfer_of(Status.PENDING, needs_person=Need.VOIDED_WITH_LEGS),
            Hold.VOIDED,
            [APPLIED],
            ["mismatched_state"],
        ),
        (transfer_of(Status.SUCCESS), Hold.POSTED, [APPLIED], []),
        (transfer_of(Status.SUCCESS), Hold.HELD, [APPLIED], ["mismatched_state"]),
        (transfer_of(Status.SUCCESS), Hold.VOIDED, [APPLIED], ["mismatched_state"]),
        (transfer_of(Status.SUCCESS), Hold.ABSENT, [APPLIED], ["missing_hold"]),
        (transfer_of(Status.SUCCESS), Hold.POSTED, [], ["missing_core_effect"]),
        (transfer_of(Status.SUCCESS), Hold.POSTED, [APPLIED, REVERSED], ["missing_core_effect"]),
        (transfer_of(Status.SUCCESS, **DECIDED_POST), Hold.POSTED, [], ["break_glass_post"]),
        (transfer_of(Status.SUCCESS), Hold.POSTED, [said(Outcome.APPLIED, amount=99)], ["core_entry_differs"]),
        (
            transfer_of(Status.SUCCESS),
            Hold.POSTED,
            [APPLIED, said(Outcome.REFUSED, side=Side.SOURCE)],
            ["core_entry_of_no_leg"],
        ),
        (transfer_of(Status.FAILED), Hold.VOIDED, [], []),
        (transfer_of(Status.FAILED), Hold.ABSENT, [], []),
        (transfer_of(Status.FAILED), Hold.VOIDED, [APPLIED, REVERSED], []),
        (transfer_of(Status.FAILED), Hold.VOIDED, [said(Outcome.REFUSED)], []),
        (transfer_of(Status.FAILED), Hold.POSTED, [], ["mismatched_state"]),
        (transfer_of(Status.FAILED), Hold.HELD, [], ["mismatched_state"]),
        (transfer_of(Status.FAILED), Hold.VOIDED, [APPLIED], ["core_effect_on_failed"]),
    ],
)
def test_what_must_agree(transfer, hold, verdicts, kinds):
    """For each status: which hold and which core's effects agree with it, and what a difference is called."""
    assert [difference.kind for difference in differences(transfer, hold, verdicts)] == kinds


@pytest.mark.parametrize(("verdicts", "kinds"), [([], []), ([APPLIED], ["applied_twice"]), ([APPLIED, REVERSED], [])])
def test_a_leg_put_right_by_hand(verdicts, kinds):
    """A leg that people put right by hand must not be applied in the core as well."""
    found = differences(transfer_of(Status.SUCCESS, **DECIDED_POST), Hold.POSTED, verdicts, by_hand={Side.TARGET})
    assert [difference.kind for difference in found] == kinds


def test_both_sides_of_one_core_have_one_leg():
    """A leg on both sides that is missing is named as such."""
    legs = (Leg(Side.BOTH, "alpha", LegState.APPLIED),)
    [difference] = differences(msgspec.structs.replace(transfer_of(Status.SUCCESS), legs=legs), Hold.POSTED, [])
    assert "has not applied the legs" in difference.detail
