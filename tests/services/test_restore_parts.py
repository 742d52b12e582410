"""What a repair meets besides plain loss: accounts without names, contradictions, silence, missing money."""

from collections import Counter

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.identifier import FENCE_HOLD_ID, TransferId, cash_id, hold_id, key_hash, post_id, void_id
from internal_transfer.domain.leg import Action, Command, LegState, Side
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import Decision, Need, Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag, TransferResult
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.restore import check as restore
from internal_transfer.services.restore.record import ToldTransfer
from internal_transfer.simulation.failpoints import Crash
from internal_transfer.simulation.faults import FailBefore, LoseAnswer
from services.desks import ACTOR, Desks, cash
from services.restores import ApartStack, check_of, repaired
from services.stack import request


@pytest.fixture
async def apart(tmp_path):
    """A service with three files, in which alice has 100 in funding and 20 in spot; there is a backup of that."""
    stack = await ApartStack(tmp_path / "store.db").start()
    await Desks(stack).fund("alice", "100")
    await stack.accepted("first", "20")
    stack.copy("first")
    yield stack
    await stack.stop()


def kinds(result):
    return [problem.kind for problem in result.problems]


async def rows_made(stack, *rows):
    outcomes = await stack.ledger.create_transfers(rows)
    assert {outcome.status for outcome in outcomes} == {TransferResult.CREATED}


def account(owner, kind="funding", asset="USDT"):
    return Account(Owner(owner), kind, asset)


def unknown_hold(transfer_id, *, owner="alice", key="other", target="earn", amount=100):
    """A hold that no record knows, between accounts that there are."""
    return LedgerTransfer(
        id=hold_id(TransferId(transfer_id)),
        debit_account_id=ledger_account_id(account(owner)),
        credit_account_id=ledger_account_id(account(owner, target)),
        amount=amount,
        user_data_128=key_hash(owner, key),
        ledger=1,
        code=1,
        flags=TransferFlag.PENDING,
    )


def rewrite(stack, statement, *values):
    """Changes a record as nobody may."""
    connection = stack.database.connection
    for (trigger,) in list(connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute(statement, values)


# The look at the start


async def test_a_core_that_does_not_answer_keeps_no_role_from_starting(apart):
    """Its routes are shed until it does; of ledger and store it must be known, and of all by who asks for all."""
    apart.core.mode = CoreMode.PAUSED
    assert await check_of(apart).disagreement() is None
    with pytest.raises(Unavailable):
        await check_of(apart).disagreement(cores_must_answer=True)
    apart.core.mode = CoreMode.NORMAL
    for system, method, faults in (
        (System.LEDGER, "newest_transfers", [FailBefore()]),
        (System.STORE, "get", [None, FailBefore()]),
        (System.OPERATIONS, "audit_about", [FailBefore()]),
    ):
        apart.scripts[system].add(method, *faults)
        with pytest.raises(Unavailable):
            await check_of(apart).disagreement()


async def test_the_look_goes_past_deposits_within_a_bound(apart, monkeypatch):
    """A page of nothing but deposits says nothing about transfers, so older rows are looked at."""
    await apart.accepted("lost", "1", target="earn")
    for number in range(3):
        await Desks(apart).fund("alice", "1", reference=f"more-{number}")
    await apart.put_back(store="first")
    monkeypatch.setattr(restore, "NEWEST_LOOKS", (2, 6))
    assert "store is older" in await check_of(apart).disagreement()
    monkeypatch.setattr(restore, "NEWEST_LOOKS", (1, 2))
    # Past the bound only the cores know.
    assert await check_of(apart).disagreement() is None


async def test_the_last_entry_of_a_core_is_found_among_gaps(apart):
    """Numbers of entries only rise: refused commands leave gaps, and the newest entry is still found."""
    for _ in range(3):
        for number in range(9):
            refused = await apart.accepted(
                f"poor-{number}-{apart.clock.now_ms()}", "500", source="spot", target="margin"
            )
            assert refused.status is Status.FAILED
        newest = await apart.accepted(f"rich-{apart.clock.now_ms()}", "1", source="spot", target="margin")
        verdicts = await check_of(apart)._newest_entries()
        assert verdicts[-1].transfer_id == newest.id
        await apart.clock.advance(1)


async def test_a_repair_needs_a_reason(apart):
    """Without one nothing is done, and nothing is noted."""
    assert isinstance(await check_of(apart).repair(actor=ACTOR, reason=" "), Refusal)
    assert await apart.operations.audit_about("restore_check", ["record"]) == []


# The ledger


async def test_a_deposit_without_an_outcome_is_noted_and_not_made(apart):
    """Nobody was told that it was done; who repeats it under its reference is sure to do it once."""
    apart.scripts[System.LEDGER].add("create_transfers", FailBefore())
    with pytest.raises(Unavailable):
        await Desks(apart).fund("alice", "7", reference="undecided")
    apart.scripts[System.LEDGER].add("create_transfers", LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await Desks(apart).fund("alice", "8", reference="done")
    result = await repaired(apart)
    assert result.ended
    assert not result.clean
    [note] = result.notes
    assert "deposit 'undecided' over 7 USDT" in note


async def test_a_transfer_whose_money_came_from_an_unrecorded_post_waits_for_it(apart):
    """The post of one was not on record yet when another used its money: the open one is driven on, then both fit."""
    apart.scripts[System.STORE].add("record", None, FailBefore())
    first = await apart.accepted("first-half", "50", target="earn")
    assert first.status is Status.PENDING
    assert await apart.posted("earn") == 5000
    second = await apart.accepted("second-half", "40", source="earn", target="spot")
    assert second.status is Status.SUCCESS
    await apart.put_back(ledger="first")
    result = await repaired(apart)
    assert result.clean, result
    assert (await apart.posted("earn"), await apart.posted("funding"), await apart.held()) == (1000, 3000, 0)
    await apart.scan_until_quiet()


async def test_money_that_is_not_there_burns_no_id(apart):
    """Where a deposit is missing nothing that rests on it is sent, and it is made as soon as the deposit is there."""
    desks = Desks(apart)
    apart.scripts[System.OPERATIONS].add("append_audit", None, FailBefore())
    with pytest.raises(OutcomeUnknown):
        await desks.fund("bob", "10", reference="unheard")
    moved = await apart.accepted("k", "6", owner="bob", target="earn")
    await desks.cash.withdraw(cash("bob", "4", reference="out"), actor=ACTOR)
    await apart.put_back(ledger="first")
    result = await repaired(apart)
    assert kinds(result) == ["funds_missing", "funds_missing"]
    assert "has not ended well" in await check_of(apart).disagreement()
    await Desks(apart).fund("bob", "10", reference="unheard")
    result = await repaired(apart)
    assert result.clean, result
    assert (await apart.transfer(moved.id)).status is Status.SUCCESS
    assert (await apart.posted("funding", owner="bob"), await apart.posted("earn", owner="bob")) == (0, 600)


async def test_a_hold_that_was_missed_before_the_repair_is_missed_no_more(apart):
    """A person is not called for a hold that the repair has made again, also where it died before it could say so."""
    apart.core.mode = CoreMode.WITHHOLD
    transfers = [await apart.accepted(f"k{number}", "1") for number in range(2)]
    for each in transfers:
        now = await apart.transfer(each.id)
        await apart.store.record([Change(now.revision, replace(now, needs_person=Need.HOLD_MISSING))])
    await apart.put_back(ledger="first")
    apart.fuse = lambda when, system, method: (when, system, method) == ("before", System.STORE, "record")
    with pytest.raises(Crash):
        await repaired(apart)
    apart.fuse = lambda *_: False
    await apart.restart()
    assert (await repaired(apart)).clean
    assert [(await apart.transfer(each.id)).needs_person for each in transfers] == [None, None]
    await apart.scan_until_quiet()
    assert await apart.posted("spot") == 2200


async def test_one_need_among_others_stays(apart):
    """A hold made again says nothing about what else a person has to look at."""
    apart.core.mode = CoreMode.WITHHOLD
    transfer = await apart.accepted("k", "1")
    now = await apart.transfer(transfer.id)
    await apart.store.record([Change(now.revision, replace(now, needs_person=Need.CORE_CONTRADICTION))])
    await apart.put_back(ledger="first")
    assert (await repaired(apart)).ended
    after = await apart.transfer(transfer.id)
    assert (after.needs_person, after.ledger_timestamp > now.ledger_timestamp) == (Need.CORE_CONTRADICTION, True)


async def test_what_two_systems_contradict_needs_a_person(apart):
    """A record that is final one way and a hold that was resolved the other way stay as they are."""
    transfer = await apart.accepted("k", "1", target="earn")
    await apart.put_back(ledger="first")
    hold = apart.driver.hold_of(transfer)
    target = account("alice", "earn")
    await apart.driver.open_accounts([target])
    void = LedgerTransfer(id=void_id(transfer.id, 0), pending_id=hold.id, flags=TransferFlag.VOID_PENDING_TRANSFER)
    await rows_made(apart, hold, void)
    result = await repaired(apart)
    assert kinds(result) == ["contradiction"]
    assert result.problems[0].request_id == str(transfer.id)


async def test_an_id_that_was_burnt_meanwhile_needs_a_person(apart):
    """A hold that the ledger does not take again is listed, and no record says that it is there."""
    transfer = await apart.accepted("k", "1", target="earn")
    apart.core.mode = CoreMode.WITHHOLD
    waiting = await apart.accepted("open", "1")
    await apart.put_back(ledger="first")
    await apart.ledger.create_transfers(
        [
            LedgerTransfer(id=hold_id(each.id), pending_id=FENCE_HOLD_ID, flags=TransferFlag.VOID_PENDING_TRANSFER)
            for each in (transfer, waiting)
        ]
    )
    assert kinds(await repaired(apart)) == ["ledger_refuses"] * 3
    assert (await apart.transfer(waiting.id)).ledger_timestamp == waiting.ledger_timestamp


async def test_what_was_held_at_the_time_of_the_backup_is_settled(apart):
    """A hold that the older ledger has is posted or voided as the record says, and not made again."""
    apart.core.mode = CoreMode.WITHHOLD
    ended = [await apart.accepted(name, "1") for name in ("posted", "voided")]
    apart.copy("open")
    await apart.decide(await apart.transfer(ended[1].id), Decision.VOID)
    await apart.scanner.recover([await apart.transfer(ended[1].id)])
    apart.core.mode = CoreMode.NORMAL
    await apart.scan_until_quiet()
    await apart.put_back(ledger="open")
    result = await repaired(apart)
    assert (result.clean, result.done) == (True, {"holds_settled_again": 2})
    assert (await apart.posted("spot"), await apart.posted("funding")) == (2100, 7900)


async def test_money_between_core_held_accounts_has_no_limit_to_keep(apart):
    """The ledger's mirrors of what cores hold may be negative, also when they are filled again."""
    moved = await apart.accepted("k", "20", source="spot", target="margin")
    assert moved.status is Status.SUCCESS
    await apart.put_back(ledger="first")
    assert (await repaired(apart)).clean
    assert (await apart.posted("spot"), await apart.posted("margin")) == (0, 2000)


@pytest.mark.parametrize("dated", [True, False], ids=["by the ledger's time", "by the record's, in old records"])
async def test_transfers_are_done_again_in_their_order(apart, dated):
    """Money went to and fro and then away: in another order, the first two transfers would find nothing to move."""
    for name, source, target in (("to", "funding", "earn"), ("fro", "earn", "funding"), ("away", "funding", "spot")):
        await apart.clock.advance(1)
        transfer = await apart.accepted(name, "80", source=source, target=target)
        assert transfer.status is Status.SUCCESS
        if not dated:
            rewrite(apart, "UPDATE transfer SET ledger_timestamp = 0 WHERE id = ?", transfer.id)
    await apart.put_back(ledger="first")
    assert (await repaired(apart)).clean
    assert [await apart.posted(name) for name in ("funding", "earn", "spot")] == [0, 0, 10_000]


async def test_a_transfer_that_was_only_found_has_its_place_too(apart):
    """A post whose answer was lost is found later, and the record says when it was made."""
    apart.scripts[System.LEDGER].add("create_transfers", None, LoseAnswer())
    asked = await apart.accepted("k", "1", target="earn")
    assert asked.status is Status.PENDING
    await apart.scan_until_quiet()
    found = await apart.transfer(asked.id)
    [post] = await apart.ledger.lookup_transfers([post_id(asked.id, 0)])
    assert (found.status, found.ledger_timestamp) == (Status.SUCCESS, post.timestamp)


async def test_what_was_refused_can_never_be_done_later(apart):
    """The ids of failed transfers and refused withdrawals are burnt again: a request that is still on its way dies."""
    failed = await apart.accepted("k", "500", target="earn")
    refused = await Desks(apart).cash.withdraw(cash("alice", "500", reference="rent"), actor=ACTOR)
    assert isinstance(refused, Refusal)
    await apart.put_back(ledger="first")
    result = await repaired(apart)
    assert (result.clean, result.done) == (True, {"ids_burnt_again": 2})
    await Desks(apart).fund("alice", "1000")
    await apart.driver.open_accounts([failed.source, failed.target])
    late = [apart.driver.hold_of(failed), replace(apart.driver.hold_of(failed), id=cash_id("rent"), flags=0)]
    outcomes = await apart.ledger.create_transfers(late)
    assert [outcome.status for outcome in outcomes] == [TransferResult.ID_ALREADY_FAILED] * 2


# The store


async def test_a_transfer_of_nobody_known_waits_for_a_person(apart):
    """Whose accounts it has nobody can say; it stays as it is, and starts are refused until that is accepted."""
    await Desks(apart).fund("carol", "10")
    lost = await apart.accepted("k", "3", owner="carol", target="earn")
    await apart.put_back(store="first")
    result = await repaired(apart)
    assert (kinds(result), result.problems[0].request_id) == (["accounts_unknown"], str(lost.id))
    assert "has not ended well" in await check_of(apart).disagreement()
    accepted = await repaired(apart, accept_unknown=True)
    assert (accepted.ended, accepted.clean, kinds(accepted)) == (True, False, [])
    assert await check_of(apart).disagreement() is None
    again = await repaired(apart, accept_unknown=True)
    assert [problem.request_id for problem in again.accepted] == [str(lost.id)]
    assert len(await apart.operations.audit_about("restore_accept_unknown", [str(lost.id)])) == 1
    assert await apart.posted("earn", owner="carol") == 300
    told = ToldTransfer(
        transfer_id=lost.id, owner=lost.owner, source=lost.source, target=lost.target, amount=lost.amount
    )
    stranger = replace(told, transfer_id=TransferId(5), failure=Code.CORE_REFUSED)
    assert (await repaired(apart, told=[told, stranger])).clean
    assert (await apart.transfer(lost.id)).status is Status.SUCCESS


async def test_an_owner_is_found_in_the_registry_and_keeps_working_under_another_number(apart):
    """Accounts made after the backup are named by trying owners known before, whatever number they had."""
    await Desks(apart).cash.deposit(cash("dave", "1", reference="btc", asset="BTC"), actor=ACTOR)
    apart.copy("dave")
    await Desks(apart).fund("dave", "10")
    moved = await apart.accepted("k", "3", owner="dave", target="earn")
    await apart.put_back(store="dave")
    # Their numbers are given to others before the repair.
    await apart.store.register([account("zed"), account("zoe")])
    assert (await repaired(apart)).clean
    assert (await apart.transfer(moved.id)).status is Status.SUCCESS
    await apart.restart()
    assert (await apart.accepted("k2", "3", owner="dave", target="earn")).status is Status.SUCCESS
    assert {entry.account for entry in await apart.store.registered(Owner("dave"))} >= {moved.source, moved.target}


async def test_a_masters_retry_finds_what_was_moved_for_a_sub_account(apart):
    """Whoever owns the rebuilt record, the caller's key finds it, and no other caller's key does."""
    sub = Owner("alice.sub")
    both = request("both", "2", target="funding", target_owner=sub)
    own = replace(request("own", "1"), source=account(sub), target=account(sub, "earn"), caller=Owner("alice"))
    asked = [both, own]
    told = [(await apart.gateway.submit(each, wait_seconds=0)).transfer for each in asked]
    assert [each.status for each in told] == [Status.SUCCESS] * 2
    await apart.put_back(store="first")
    assert (await repaired(apart)).clean
    await apart.restart()
    for each, before in zip(asked, told, strict=True):
        answer = await apart.gateway.submit(replace(each, memo="another"), wait_seconds=0)
        assert (answer.replayed, answer.transfer.id) == (True, before.id)
    assert (await apart.transfer(told[0].id)).owner == "alice"
    assert (await apart.inquiry.by_key(Owner("alice"), "both")).transfer.id == told[0].id
    assert await apart.inquiry.by_key(sub, "both") is None
    changed = await apart.gateway.submit(replace(both, amount="3"), wait_seconds=0)
    assert changed.refusal.code is Code.IDEMPOTENCY_KEY_REUSED
    assert [detail.field for detail in changed.refusal.details] == ["amount"]


async def test_rows_of_the_ledger_that_make_no_transfer_need_a_person(apart):
    """Resolutions of others' holds, holds of one key, of strangers, and of accounts of no known type are listed."""
    await apart.driver.open_accounts([account("alice", "earn"), account("bob"), account("bob", "earn")])
    strange = LedgerAccount(id=77, ledger=1, code=99)
    await apart.ledger.create_accounts([strange])
    ids = apart.clock.new_ids(5)
    apart.core.mode = CoreMode.WITHHOLD
    known = await apart.accepted("open", "1")
    apart.core.mode = CoreMode.NORMAL
    await rows_made(
        apart,
        unknown_hold(ids[0], key="twice"),
        unknown_hold(ids[1], key="twice"),
        replace(unknown_hold(ids[2]), credit_account_id=77),
        replace(unknown_hold(ids[3], key="gift"), credit_account_id=ledger_account_id(account("bob"))),
        LedgerTransfer(
            id=post_id(ids[4], 0),
            pending_id=hold_id(known.id),
            amount=known.amount,
            flags=TransferFlag.POST_PENDING_TRANSFER,
        ),
    )
    result = await repaired(apart)
    assert Counter(kinds(result)) == {"record_refused": 1, "accounts_unknown": 1, "resolution_without_hold": 1}
    gift = await apart.transfer(ids[3])
    assert (gift.owner, gift.target.owner, gift.status) == ("alice", "bob", Status.PENDING)


@pytest.mark.parametrize(
    ("side", "amount"), [(Side.SOURCE, 100), (Side.TARGET, 99)], ids=["a leg that is none", "another amount"]
)
async def test_a_core_that_contradicts_the_ledger_calls_for_a_person(apart, side, amount):
    """A rebuilt transfer about which a core says what cannot be is not driven on."""
    start = apart.clock.new_ids(1)[0]
    spot = account("alice", "spot")
    debit, credit = (spot, None) if side is Side.SOURCE else (None, spot)
    await apart.core.tell([Command(start, "alpha", side, Action.APPLY, "USDT", amount, debit, credit)])
    await rows_made(apart, unknown_hold(start, target="spot"))
    assert (await repaired(apart)).ended
    rebuilt = await apart.transfer(start)
    assert (rebuilt.status, rebuilt.needs_person) == (Status.PENDING, Need.CORE_CONTRADICTION)


@pytest.mark.parametrize(
    ("told", "failure"),
    [
        (None, Code.CORE_REFUSED),
        (Code.CORE_REFUSED, Code.CORE_REFUSED),
        (Code.INSUFFICIENT_BALANCE, Code.INSUFFICIENT_BALANCE),
        (Code.VOIDED_BY_OPERATOR, Code.VOIDED_BY_OPERATOR),
    ],
)
async def test_why_a_hold_was_voided_is_told_by_events_where_the_core_forgot(apart, told, failure):
    """Without an event a refusal by the core is assumed, and the core is told so that nothing comes of it later."""
    start = apart.clock.new_ids(1)[0]
    hold = unknown_hold(start, target="spot")
    await rows_made(
        apart, hold, LedgerTransfer(id=void_id(start, 1), pending_id=hold.id, flags=TransferFlag.VOID_PENDING_TRANSFER)
    )
    place = {"source": account("alice"), "target": account("alice", "spot")}
    event = ToldTransfer(transfer_id=start, owner=Owner("alice"), amount=100, failure=told, **place)
    assert (await repaired(apart, told=[event])).clean
    rebuilt = await apart.transfer(start)
    assert (rebuilt.status, rebuilt.failure, rebuilt.void_attempt) == (Status.FAILED, failure, 1)
    [[verdict]] = await apart.core.verdicts([start])
    assert verdict.action is Action.CANCEL


async def test_what_was_voided_between_ledger_held_accounts_was_voided_by_persons(apart):
    """No core could have refused it, also where it is begun to be rebuilt and the event comes with the next run."""
    await apart.driver.open_accounts([account("alice", "earn")])
    start = apart.clock.new_ids(1)[0]
    hold = unknown_hold(start)
    await rows_made(
        apart, hold, LedgerTransfer(id=void_id(start, 0), pending_id=hold.id, flags=TransferFlag.VOID_PENDING_TRANSFER)
    )
    apart.fuse = lambda when, system, method: (when, system, method) == ("before", System.STORE, "record")
    with pytest.raises(Crash):
        await repaired(apart)
    apart.fuse = lambda *_: False
    await apart.restart()
    place = {"source": account("alice"), "target": account("alice", "earn")}
    event = ToldTransfer(transfer_id=start, owner=Owner("alice"), amount=100, failure=Code.VOIDED_BY_OPERATOR, **place)
    assert (await repaired(apart, told=[event])).clean
    assert (await apart.transfer(start)).failure is Code.VOIDED_BY_OPERATOR


async def test_an_older_record_catches_up_with_what_became_of_its_holds(apart):
    """A record from before the end of a transfer learns of it, unless the transfer needs a person."""
    await apart.clock.advance(1)
    apart.core.mode = CoreMode.WITHHOLD
    names = ("held", "looked_at", "done")
    transfers = [await apart.accepted(name, "1") for name in names]
    looked_at = await apart.transfer(transfers[1].id)
    await apart.store.record([Change(looked_at.revision, replace(looked_at, needs_person=Need.CORE_CONTRADICTION))])
    apart.core.mode = CoreMode.NORMAL
    await rows_made(
        apart,
        *(
            LedgerTransfer(
                id=post_id(each.id, 0),
                pending_id=hold_id(each.id),
                amount=each.amount,
                flags=TransferFlag.POST_PENDING_TRANSFER,
            )
            for each in transfers[1:]
        ),
    )
    assert (await repaired(apart)).ended
    statuses = [(await apart.transfer(each.id)).status for each in transfers]
    assert statuses == [Status.PENDING, Status.PENDING, Status.SUCCESS]
    assert await apart.in_core() == 2100


async def test_a_record_that_somebody_else_changes_is_left_to_them(apart):
    """A repair that loses a race for a record does not overwrite it."""
    apart.core.mode = CoreMode.WITHHOLD
    transfer = await apart.accepted("k", "1")
    post = LedgerTransfer(
        id=post_id(transfer.id, 0),
        pending_id=hold_id(transfer.id),
        amount=transfer.amount,
        flags=TransferFlag.POST_PENDING_TRANSFER,
    )
    await rows_made(apart, post)
    apart.core.mode = CoreMode.NORMAL

    def meddle(when, system, method):
        if (when, system, method) == ("before", System.CORE, "verdicts") and apart.meddling:
            apart.meddling = False
            apart.database.connection.execute(
                "UPDATE transfer SET revision = revision + 1 WHERE id = ?", (transfer.id,)
            )
        return False

    apart.meddling = True
    check = check_of(apart)
    assert await check.disagreement() is None
    apart.meddling = True
    apart.fuse = meddle
    result = await repaired(apart)
    assert result.ended
    assert not apart.meddling


# The cores


class Late:
    """A core that is told over a bus never answers in the reply."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def tell(self, commands):
        answers = await self._inner.tell(commands)
        return [None for _ in answers]


async def test_a_core_behind_a_bus_is_looked_at_for_its_answers(tmp_path):
    """What it was told again counts when its verdict is there."""
    stack = await ApartStack(tmp_path / "store.db").start()
    await Desks(stack).fund("alice", "100")
    stack.copy("before")
    await stack.accepted("k", "20")
    await stack.stop()
    stack.in_front_of_core = lambda core, _: Late(core)
    await stack.put_back(core="before")
    result = await repaired(stack)
    assert (result.clean, result.done) == (True, {"legs_told_again": 1})
    assert await stack.in_core() == 2000
    await stack.stop()


async def test_a_core_that_stays_silent_needs_a_person(apart):
    """No role starts while it is not known that a core has what it had; the next run looks with new eyes."""
    await apart.accepted("k", "20")
    await apart.put_back(core="first")
    apart.core.mode = CoreMode.WITHHOLD
    check = check_of(apart)
    result = await apart.patiently(check.repair(actor=ACTOR, reason="disk lost"))
    assert kinds(result) == ["core_silent"]
    apart.core.mode = CoreMode.NORMAL
    assert (await check.repair(actor=ACTOR, reason="again")).clean


async def test_a_core_that_says_something_else_now_needs_a_person(apart):
    """A command that was applied and is now refused, or the other way round, is a contradiction."""
    taken = await apart.accepted("taken", "20")
    apart.core.mode = CoreMode.REFUSE
    refused = await apart.accepted("refused", "20")
    await apart.put_back(core="first")
    spot = account("alice", "spot")
    await apart.core.tell([Command(refused.id, "alpha", Side.TARGET, Action.APPLY, "USDT", 2000, None, spot)])
    apart.core.mode = CoreMode.REFUSE_CREDITS
    result = await repaired(apart)
    assert {(each.kind, each.request_id) for each in result.problems} == {
        ("core_contradiction", str(taken.id)),
        ("core_contradiction", str(refused.id)),
    }
    # The refusal is the core's first verdict by now.
    assert len(kinds(await repaired(apart))) == 2


async def test_a_core_is_told_of_debits_only_where_it_has_the_money(apart):
    """Debits follow in order, as credits and other debits fund them; funds that came from trades need a person."""
    await apart.clock.advance(1)
    await apart.accepted("to_margin", "20", source="spot", target="margin")
    await apart.clock.advance(1)
    back = await apart.accepted("back", "20", source="margin", target="spot")
    await apart.clock.advance(1)
    out = await apart.accepted("out", "15", source="spot", target="earn")
    # As if they had been recorded in another order.
    rewrite(apart, "UPDATE transfer SET ledger_timestamp = 1 WHERE id = ?", back.id)
    await apart.put_back(core="first")
    assert (await repaired(apart)).clean
    assert (await apart.in_core("spot"), await apart.in_core("margin")) == (500, 0)
    await apart.put_back(core="first")
    trade = Command(TransferId(9), "alpha", Side.SOURCE, Action.APPLY, "USDT", 1000, account("alice", "spot"), None)
    await apart.core.tell([trade])
    result = await repaired(apart)
    assert Counter(kinds(result)) == {"core_funds_missing": 3, "core_entry_without_transfer": 1}
    assert str(out.id) in {problem.request_id for problem in result.problems}
    assert [(await apart.moves(each.id)) for each in (back, out)] == [Counter(), Counter()]


async def test_older_transfers_can_be_left_alone(apart):
    """`since` keeps what a core's backup is known to have from being looked at."""
    await apart.clock.advance(10)
    since_ms = apart.clock.now_ms()
    await apart.accepted("k", "20")
    await apart.put_back(core="first")
    asked = []
    apart.fuse = lambda when, system, method: bool(
        asked.append(method) if (when, system) == ("before", System.CORE) and method == "tell" else None
    )
    assert (await repaired(apart, since_ms=since_ms + 1)).ended
    assert asked == []
    assert (await repaired(apart, since_ms=since_ms)).clean
    assert asked == ["tell"]


async def test_a_reversed_leg_that_a_core_has_as_applied_is_reversed_again(apart):
    """What failed after one core had moved the money ends with that core as it was."""
    apart.core.mode = CoreMode.REFUSE_CREDITS
    failed = await apart.accepted("k", "5", source="spot", target="futures")
    assert [leg.state for leg in failed.legs] == [LegState.REVERSED, LegState.REFUSED]
    await apart.put_back(core="first")
    spot = account("alice", "spot")
    await apart.core.tell([Command(failed.id, "alpha", Side.SOURCE, Action.APPLY, "USDT", 500, spot, None)])
    assert (await repaired(apart)).clean
    assert (await apart.in_core("spot"), await apart.in_core("futures")) == (2000, 0)
