"""G10, fencing, and the roles that recover: how transfers go on from the truth after anything was lost."""

import asyncio

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.account import Account, Owner, ledger_account_id
from internal_transfer.domain.cash import CASH_OWNER, CashAct
from internal_transfer.domain.identifier import FENCE_HOLD_ID, cash_id, hold_id, post_id, void_id
from internal_transfer.domain.leg import Action, LegState, Outcome, Side, Verdict
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Decision, Facts, Hold, Need, Status, command_of
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.ledger import LedgerAccount, LedgerTransfer, TransferFlag, TransferResult
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.driver import Work
from internal_transfer.services.retry_times import RetryTimes
from internal_transfer.simulation.faults import ArriveLate, Delay, Duplicate, FailBefore, LoseAnswer, NeverAnswer
from services.fronts import Broken, Moods, Twisted

EXPIRY_SECONDS = 900
VOID = TransferFlag.VOID_PENDING_TRANSFER


def sample(stack, name, **labels):
    return stack.telemetry.registry.get_sample_value(f"internal_transfer_{name}", labels)


async def requested(stack, key="key", amount="5", fault=None, **places):
    """A transfer whose hold was not seen to be made; the fault is the one of its hold."""
    stack.scripts[System.LEDGER].add("create_transfers", fault or FailBefore())
    answer = await stack.patiently(stack.submit(key, amount, **places))
    assert answer.transfer.status is Status.REQUESTING
    return await stack.transfer(answer.transfer.id)


async def in_ledger(stack, *rows):
    return [outcome.status.value for outcome in await stack.ledger.create_transfers(rows)]


async def fenced(stack, transfer):
    """The transfer after its time is over and the scanner has been at it."""
    await stack.pass_time(EXPIRY_SECONDS + 1, step=60)
    await stack.scanner.scan()
    return await stack.transfer(transfer.id)


async def fence_again(stack, transfer):
    """Drives a transfer whose fencing is on record, from the moment before the fence is sent."""
    [transfer] = await stack.store.record([Change(transfer.revision, replace(transfer, fencing=True))])
    work = Work(transfer, Facts(Hold.ABSENT, expired=True))
    await stack.driver.drive([work])
    return work.transfer


def hold_of(stack, transfer):
    return stack.driver.hold_of(transfer)


async def test_a_hold_that_was_never_made_is_made_in_time(start):
    """Before its time is over, a transfer without a hold gets one and goes on."""
    stack = await start()
    transfer = await requested(stack)
    await stack.pass_time(5)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.SUCCESS


async def test_fence_row_1_a_hold_that_never_came_is_burnt(start):
    """pending_transfer_not_found: FAILED as EXPIRED, the money was never touched, and the hold that arrives afterwards
    fails.
    """
    stack = await start()
    transfer = await requested(stack, fault=ArriveLate())
    after = await fenced(stack, transfer)
    assert (after.status, after.failure, after.fencing) == (Status.FAILED, Code.EXPIRED, True)
    assert await in_ledger(stack, hold_of(stack, transfer)) == ["id_already_failed"]
    assert await stack.faults[System.LEDGER].deliver_late() == 1
    assert (await stack.held(), await stack.posted("funding")) == (0, 100_000)


async def test_fence_row_2_a_fence_whose_answer_was_lost_is_sent_again(start):
    """id_already_failed: the first fence had worked, so the second ends the transfer the same way."""
    stack = await start()
    transfer = await requested(stack)
    stack.scripts[System.LEDGER].add("create_transfers", LoseAnswer())
    after = await fenced(stack, transfer)
    assert (after.status, after.fencing) == (Status.REQUESTING, True)
    await stack.pass_time(10)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).failure is Code.EXPIRED


@pytest.mark.parametrize(("wait", "failure"), [(5, Code.INSUFFICIENT_BALANCE), (EXPIRY_SECONDS + 1, Code.EXPIRED)])
async def test_fence_row_2_a_refusal_whose_answer_was_lost_is_found_again(start, wait, failure):
    """id_already_failed: without a fence only a lack of money can have burnt the id; with one, the time is over."""
    stack = await start()
    transfer = await requested(stack, amount="2000", fault=LoseAnswer())
    await stack.pass_time(wait, step=60)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).failure is failure


async def test_fence_row_3_a_hold_that_came_first_goes_on(start):
    """exists_with_different_flags: the hold was made in time, so the transfer becomes PENDING and is finished."""
    stack = await start()
    transfer = await requested(stack, fault=LoseAnswer())
    after = await fence_again(stack, transfer)
    assert (after.status, after.fencing) == (Status.SUCCESS, True)
    assert await stack.in_core() == 500


@pytest.mark.parametrize(
    ("resolution", "flag", "end", "in_core"),
    [
        (post_id, TransferFlag.POST_PENDING_TRANSFER, (Status.SUCCESS, None), 500),
        (void_id, VOID, (Status.PENDING, Need.VOIDED_WITH_LEGS), 0),
    ],
)
async def test_fence_row_3_a_hold_that_was_resolved_is_seen(start, resolution, flag, end, in_core):
    """exists_with_different_flags of a hold that is posted, as after a restored store: its legs follow. A hold that was
    voided without a reason on record is for a person, and no leg is asked.
    """
    stack = await start()
    transfer = await requested(stack, fault=LoseAnswer())
    held = hold_id(transfer.id)
    amount = transfer.amount if flag != VOID else 0
    resolve = LedgerTransfer(id=resolution(transfer.id, 0), pending_id=held, amount=amount, flags=flag)
    assert await in_ledger(stack, resolve) == ["created"]
    after = await fence_again(stack, transfer)
    assert (after.status, after.needs_person) == end
    assert await stack.in_core() == in_core


async def test_fence_row_4_an_id_that_is_itself_a_void_needs_a_person(start):
    """exists_with_different_pending_id: what sits under the hold's id is foreign, and nothing is decided."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    other = await stack.accepted("other", "1")
    transfer = await requested(stack)
    void = LedgerTransfer(id=hold_id(transfer.id), pending_id=hold_id(other.id), flags=VOID)
    assert await in_ledger(stack, void) == ["created"]
    after = await fence_again(stack, transfer)
    assert (after.status, after.needs_person) == (Status.REQUESTING, Need.HOLD_COLLISION)
    assert await stack.scanner.recover([after]) is not None
    assert (await stack.transfer(transfer.id)).status is Status.REQUESTING


async def test_fence_any_other_answer_is_doubt(start):
    """An answer that is neither: the transfer stays as it is, is counted, and is asked about again."""
    stack = await start(in_front_of_ledger=(twisted := Twisted()))
    transfer = await requested(stack)
    twisted.statuses[hold_id(transfer.id)] = TransferResult.PENDING_TRANSFER_NOT_PENDING
    after = await fenced(stack, transfer)
    assert (after.status, after.fencing, after.needs_person) == (Status.REQUESTING, True, None)
    assert sample(stack, "unexpected_answers_total", system="ledger", answer="pending_transfer_not_pending") == 1
    twisted.statuses.clear()
    await stack.pass_time(10)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).failure is Code.EXPIRED


@pytest.mark.parametrize("hold_first", [True, False])
async def test_a_hold_races_its_fence_and_exactly_one_wins(start, hold_first):
    """A hold is still on its way when its transfer expires: hold or fence, the first to reach the ledger decides."""
    stack = await start(each_call=True, times=RetryTimes(expiry_seconds=0.5), call_seconds=60)
    held, fence = (Delay(before_seconds=3.0), Delay(before_seconds=8.0))
    stack.scripts[System.LEDGER].add("create_transfers", held, fence if hold_first else None)
    asked = asyncio.ensure_future(stack.submit("key", "5"))
    await stack.pass_time(2)
    [transfer] = await stack.store.by_status(Status.REQUESTING, after=None, most=1)
    scan = asyncio.ensure_future(stack.scanner.recover([transfer]))
    await stack.pass_time(15)
    assert asked.done()
    assert scan.done()
    await stack.scan_until_quiet()
    after = await stack.transfer(transfer.id)
    wanted = (Status.SUCCESS, 500) if hold_first else (Status.FAILED, 0)
    assert (after.status, await stack.in_core()) == wanted
    assert (await stack.held(), await stack.posted("funding")) == (0, 100_000 - wanted[1])


async def test_an_unexpected_answer_to_a_hold_is_fenced_and_looked_at(start):
    """A code that no hold should get: what was made is found and goes on, what was not is EXPIRED."""
    stack = await start(in_front_of_ledger=(twisted := Twisted()))
    made, not_made = await requested(stack, "made"), await requested(stack, "not made", "2000")
    for transfer in (made, not_made):
        twisted.statuses[hold_id(transfer.id)] = TransferResult.LEDGER_MUST_NOT_BE_ZERO
        work = Work(transfer, Facts(Hold.ABSENT))
        await stack.driver.drive([work])
        assert (work.transfer.status, work.transfer.fencing) == (Status.REQUESTING, True)
    twisted.statuses.clear()
    await stack.pass_time(EXPIRY_SECONDS, step=60)
    await stack.scanner.scan()
    assert (await stack.transfer(made.id)).status is Status.SUCCESS
    assert (await stack.transfer(not_made.id)).failure is Code.EXPIRED


@pytest.mark.parametrize("found", ["by the hold", "by looking"])
async def test_a_foreign_hold_needs_a_person(start, found):
    """Another transfer sits under the hold's id: nothing is decided, and a person's void ends it without money."""
    stack = await start()
    transfer = await requested(stack)
    other = replace(hold_of(stack, transfer), amount=1)
    assert await in_ledger(stack, other) == ["created"]
    work = Work(transfer, Facts(Hold.ABSENT if found == "by the hold" else Hold.UNKNOWN))
    await stack.driver.drive([work])
    assert (work.transfer.status, work.transfer.needs_person) == (Status.REQUESTING, Need.HOLD_COLLISION)
    await stack.decide(work.transfer, Decision.VOID)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).failure is Code.VOIDED_BY_OPERATOR


async def pending(stack, key="key"):
    """A transfer whose money is held while its core is silent."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted(key, "5")
    assert transfer.status is Status.PENDING
    stack.core.mode = CoreMode.NORMAL
    return transfer


@pytest.mark.parametrize("act", ["post", "void"])
async def test_a_burnt_post_or_void_goes_on_under_a_new_id(start, act):
    """The id of the first attempt is burnt: the next attempt is recorded first, and resolves the hold."""
    stack = await start()
    transfer = await pending(stack)
    if act == "void":
        stack.core.mode = CoreMode.REFUSE
    resolution = (post_id if act == "post" else void_id)(transfer.id, 0)
    burn = LedgerTransfer(id=resolution, pending_id=FENCE_HOLD_ID, flags=VOID)
    assert await in_ledger(stack, burn) == ["pending_transfer_not_found"]
    await stack.scan_until_quiet()
    after = await stack.transfer(transfer.id)
    assert (after.post_attempt, after.void_attempt) == ((1, 0) if act == "post" else (0, 1))
    assert after.status is (Status.SUCCESS if act == "post" else Status.FAILED)
    assert await stack.held() == 0


@pytest.mark.parametrize(
    ("answer", "need"),
    [
        (TransferResult.PENDING_TRANSFER_NOT_FOUND, Need.HOLD_MISSING),
        (TransferResult.EXISTS_WITH_DIFFERENT_AMOUNT, Need.HOLD_COLLISION),
        (TransferResult.PENDING_TRANSFER_ALREADY_VOIDED, Need.VOIDED_WITH_LEGS),
        (TransferResult.EXCEEDS_PENDING_TRANSFER_AMOUNT, None),
    ],
)
async def test_what_the_ledger_may_answer_to_a_post(start, answer, need):
    """After the core applied, a post that cannot be done is for a person; an answer without sense is asked again."""
    stack = await start(in_front_of_ledger=(twisted := Twisted()))
    transfer = await pending(stack)
    twisted.statuses[post_id(transfer.id, 0)] = answer
    await stack.pass_time(5)
    await stack.scanner.scan()
    after = await stack.transfer(transfer.id)
    assert (after.status, after.needs_person) == (Status.PENDING, need)


@pytest.mark.parametrize(
    ("answer", "need"),
    [
        (TransferResult.PENDING_TRANSFER_ALREADY_POSTED, Need.POSTED_WITHOUT_LEGS),
        (TransferResult.PENDING_TRANSFER_ALREADY_VOIDED, None),
    ],
)
async def test_what_the_ledger_may_answer_to_a_void(start, answer, need):
    """After the core refused, a hold that is posted is for a person; one that is voided already is the wanted end."""
    stack = await start(in_front_of_ledger=(twisted := Twisted()))
    transfer = await pending(stack)
    stack.core.mode = CoreMode.REFUSE
    twisted.statuses[void_id(transfer.id, 0)] = answer
    await stack.pass_time(5)
    await stack.scanner.scan()
    after = await stack.transfer(transfer.id)
    assert (after.status, after.needs_person) == (Status.PENDING if need else Status.FAILED, need)


async def test_a_post_fence_without_sense_is_doubt(start):
    """The fence before a reversal is answered with neither: nothing is reversed, and it is tried again."""
    stack = await start(in_front_of_ledger=(twisted := Twisted()))
    transfer = await pending(stack)
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    await stack.pass_time(5)
    await stack.scanner.scan()
    twisted.statuses[post_id(transfer.id, 0)] = TransferResult.LEDGER_MUST_NOT_BE_ZERO
    await stack.decide(await stack.transfer(transfer.id), Decision.VOID)
    await stack.scanner.scan()
    after = await stack.transfer(transfer.id)
    assert (after.status, after.legs[0].state, after.needs_person) == (Status.PENDING, LegState.APPLIED, None)
    twisted.statuses.clear()
    await stack.scan_until_quiet()
    assert (await stack.transfer(transfer.id)).failure is Code.VOIDED_BY_OPERATOR
    assert await stack.in_core() == 0


async def test_a_post_that_is_not_ours_is_seen(start):
    """Under the post's id sits the resolution of another hold: a person has to look."""
    stack = await start()
    transfer, other = await pending(stack), await pending(stack, "other")
    void = LedgerTransfer(id=post_id(transfer.id, 0), pending_id=hold_id(other.id), flags=VOID)
    assert await in_ledger(stack, void) == ["created"]
    await stack.pass_time(5)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).needs_person is Need.HOLD_COLLISION


async def test_an_account_that_the_ledger_does_not_take_stops_only_its_own_transfers(start):
    """One account exists with another code: its transfers wait and expire, the others in the batch succeed."""
    stack = await start()
    bad = Account(Owner("alice"), "earn", "USDT")
    wrong = LedgerAccount(id=ledger_account_id(bad), ledger=1, code=99)
    await stack.ledger.create_accounts([wrong])
    alone = await stack.submit("alone", "1", target="earn")
    assert alone.transfer.status is Status.REQUESTING
    answers = await asyncio.gather(*(stack.submit(f"k{n}", "1", target=["spot", "earn"][n % 2]) for n in range(4)))
    statuses = [answer.transfer.status for answer in answers]
    assert statuses == [Status.SUCCESS, Status.REQUESTING] * 2
    assert sample(stack, "unexpected_answers_total", system="ledger", answer="exists_with_different_flags") == 2
    with pytest.raises(OutcomeUnknown, match="cannot be created"):
        await stack.driver.open_accounts([bad])
    await stack.driver.open_accounts([Account(Owner("alice"), "spot", "BTC")])
    after = await fenced(stack, answers[1].transfer)
    assert after.failure is Code.EXPIRED


async def test_the_accounts_of_the_outside_have_codes_of_their_own_and_no_limit(start):
    """Where deposits come from may go below zero; no user's account can be taken for it."""
    stack = await start()
    outside = Account(CASH_OWNER, CashAct.DEPOSIT.value, "USDT")
    await stack.driver.open_accounts([outside])
    [account] = await stack.ledger.lookup_accounts([ledger_account_id(outside)])
    assert account.flags == 0
    assert account.code not in {kind.code for kind in stack.rules.account_types.values()}


async def test_known_accounts_are_forgotten_before_they_fill_the_memory(start, monkeypatch):
    """With more accounts than are remembered, transfers still go on."""
    monkeypatch.setattr("internal_transfer.services.driver._KNOWN_ACCOUNTS_MAX", 3)
    stack = await start()
    for n, target in enumerate(["spot", "earn", "margin", "futures", "spot"]):
        assert (await stack.accepted(f"key{n}", target=target)).status is Status.SUCCESS
    # Those of the first transfer were forgotten, so the ledger was asked for them again.
    created = sample(stack, "port_call_duration_seconds_count", port="ledger", method="create_accounts")
    assert created == 5


async def test_g10_when_faults_stop_everything_ends_in_a_few_scans(start):
    """Two hundred transfers in trouble of every kind: once it is over, six scans end them all."""
    stack = await start(each_call=True, times=RetryTimes(longest_seconds=20.0))
    trouble = [FailBefore(), LoseAnswer(), Duplicate(), None, ArriveLate()]
    for n in range(200):
        stack.scripts[System.LEDGER].add("create_transfers", trouble[n % 5])
        stack.scripts[System.STORE].add("record", trouble[n % 4])
        stack.scripts[System.CORE].add("tell", trouble[n % 5])
    stack.core.mode = CoreMode.WITHHOLD
    keys = []
    for n in range(40):
        keys += [f"{n}:{m}" for m in range(5)]
        places = {"target": ["spot", "earn", "futures"][n % 3]}
        answers = await asyncio.gather(*(stack.submit(key, "1", **places) for key in keys[-5:]), return_exceptions=True)
        assert all(isinstance(each, Unavailable | OutcomeUnknown) or each.transfer for each in answers)
    stack.core.mode = CoreMode.NORMAL
    for system in System:
        stack.scripts[system]._scripts.clear()
    assert sum((await stack.store.open_summary()).by_status.values()) > 100
    assert await stack.scan_until_quiet(scans_most=6, apart_seconds=20.0) <= 6


async def test_g10_a_restarted_process_takes_everything_up_at_once(start):
    """What was open when the process died is due when it is back, whatever its time was."""
    stack = await start()
    stack.core.mode = CoreMode.WITHHOLD
    for n in range(20):
        await stack.accepted(f"key{n}")
    await stack.restart()
    assert await stack.scanner.scan() == 20
    assert (await stack.store.open_summary()).by_status[Status.PENDING] == 0


async def test_failures_back_off_up_to_the_longest(start):
    """A core that stays away is asked after 1, 2, 4 ... seconds, at most the longest, spread over half of it."""
    stack = await start(times=RetryTimes(longest_seconds=16.0))
    stack.core.mode = CoreMode.PAUSED
    transfer = await stack.accepted("key")
    waits = []
    for _ in range(8):
        transfer = await stack.transfer(transfer.id)
        waits.append((transfer.due_at - stack.clock.now_ms()) / 1000)
        await stack.pass_time(waits[-1] + 0.001, step=20)
        await stack.scanner.scan()
    for wait, full in zip(waits, [1, 2, 4, 8, 16, 16, 16, 16], strict=True):
        assert full / 2 <= wait <= full


async def test_a_put_off_that_cannot_be_recorded_is_no_failure_of_the_work(start):
    """The store also fails when the next due time is recorded: the transfer is due at the time recorded before."""
    stack = await start()
    stack.core.mode = CoreMode.PAUSED
    stack.scripts[System.STORE].add("record", None, FailBefore(), None, Duplicate())
    transfer = await stack.accepted("key")
    assert (transfer.status, transfer.attempts) == (Status.PENDING, 0)
    await stack.pass_time(4)
    stack.scripts[System.STORE].add("record")
    await stack.scanner.scan()
    stack.core.mode = CoreMode.NORMAL
    await stack.scan_until_quiet()


@pytest.mark.parametrize(
    ("system", "method"), [(System.LEDGER, "create_transfers"), (System.CORE, "tell"), (System.STORE, "record")]
)
async def test_a_system_that_never_answers_is_not_waited_for(start, system, method):
    """After the deadline the answer is unknown, the client is told what is on record, and the scanner goes on."""
    stack = await start(each_call=True)
    stack.scripts[system].add(method, NeverAnswer())
    answer = await stack.patiently(stack.submit("key", "5"))
    assert answer.transfer.status in {Status.REQUESTING, Status.PENDING}
    assert sample(stack, "operating_failures_total", system=system.value, kind="OutcomeUnknown") == 1
    await stack.scan_until_quiet()
    assert await stack.in_core() == 500


async def test_more_steps_than_any_way_takes_are_left_to_the_scanner(start, monkeypatch):
    """Work stops after the most rounds, and what is recorded by then is gone on with later."""
    monkeypatch.setattr("internal_transfer.services.driver.ROUNDS_MAX", 2)
    stack = await start()
    transfer = await stack.accepted("key")
    assert transfer.status is Status.PENDING
    monkeypatch.setattr("internal_transfer.services.driver.ROUNDS_MAX", 32)
    await stack.scan_until_quiet()
    assert (await stack.transfer(transfer.id)).status is Status.SUCCESS


async def test_the_scanner_goes_on_whatever_a_scan_meets(start):
    """Failing systems and a bug in one transfer's record: counted, and everything else is finished by later scans."""
    core = Broken()
    stack = await start(in_front_of_core=core)
    poison, healthy = await pending(stack, "poison"), await pending(stack, "healthy")
    stack.core.mode = CoreMode.WITHHOLD
    task = asyncio.ensure_future(stack.scanner.run())
    stack.tasks.append(task)
    await stack.clock.settle()
    await stack.pass_time(20)
    stack.core.mode = CoreMode.NORMAL
    core.is_broken = lambda commands: any(command.transfer_id == poison.id for command in commands)
    stack.scripts[System.STORE].add("lease_due", FailBefore(), NeverAnswer())
    stack.scripts[System.OPERATIONS].add("policy", FailBefore())
    await stack.pass_time(120)
    assert (await stack.transfer(healthy.id)).status is Status.SUCCESS
    assert (await stack.transfer(poison.id)).status is Status.PENDING
    assert sample(stack, "operating_failures_total", system="scanner", kind="AssertionError") > 1
    core.is_broken = lambda _: False
    await stack.pass_time(60)
    assert (await stack.transfer(poison.id)).status is Status.SUCCESS
    assert not task.done()


async def test_a_scan_that_breaks_as_a_whole_is_counted(start):
    """A bug outside of any transfer: the role stays, and says so."""
    stack = await start()
    stack.lines[System.OPERATIONS].target = None
    task = asyncio.ensure_future(stack.scanner.run())
    stack.tasks.append(task)
    await stack.pass_time(11)
    assert sample(stack, "operating_failures_total", system="scanner", kind="AttributeError") == 3
    assert not task.done()


async def test_a_system_that_fails_ends_the_scan(start):
    """The commit fails under the scan: it is a failure of the store, not of the transfers, and the scan is over."""
    stack = await start()
    await pending(stack)
    await stack.pass_time(5)
    stack.durability_script.add("durable", LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await stack.scanner.scan()
    assert sample(stack, "scanner_runs_total") == 0
    await stack.pass_time(31)
    await stack.scan_until_quiet()


async def test_a_system_that_fails_while_transfers_are_taken_singly_ends_the_scan(start):
    """A bug breaks a batch, and the commit fails for the first transfer that is then recovered singly."""
    core = Broken()
    stack = await start(in_front_of_core=core)
    await pending(stack)
    await pending(stack, "other")
    core.is_broken = lambda commands: len(commands) > 1
    await stack.pass_time(5)
    stack.durability_script.add("durable", None, None, LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await stack.scanner.scan()
    assert sample(stack, "operating_failures_total", system="scanner", kind="AssertionError") == 1
    await stack.pass_time(31)
    await stack.scan_until_quiet()


async def test_a_reversal_that_finds_the_post_done_gives_way_to_it(start):
    """The fence before a reversal meets a post that was made in the meantime: the transfer is SUCCESS."""
    stack = await start()
    transfer = await pending(stack)
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    await stack.pass_time(5)
    await stack.scanner.scan()
    await stack.decide(await stack.transfer(transfer.id), Decision.VOID)
    transfer = await stack.transfer(transfer.id)
    assert transfer.legs[0].state is LegState.APPLIED
    post = LedgerTransfer(
        id=post_id(transfer.id, 0),
        pending_id=hold_id(transfer.id),
        amount=transfer.amount,
        flags=TransferFlag.POST_PENDING_TRANSFER,
    )
    assert await in_ledger(stack, post) == ["created"]
    work = Work(transfer, Facts(Hold.HELD))
    await stack.driver.drive([work])
    assert work.transfer.status is Status.SUCCESS
    assert await stack.in_core() == 500


async def test_the_scan_measures_what_is_open(start):
    """The gauges tell how many are open, of what age, and how many need a person and why."""
    stack = await start(in_front_of_core=(moods := Moods()))
    moods.silent.add("alpha")
    transfer = await stack.accepted("key")
    await stack.scanner.scan()
    assert sample(stack, "open_transfers", status="PENDING", age="fresh") == 1
    await stack.settler.settle([replace(moods.said[0], amount=7)])
    for seconds, age in ((61, "stuck"), (1800, "alert"), (7200, "critical")):
        await stack.pass_time(seconds, step=200)
        await stack.scanner.scan()
        assert sample(stack, "open_transfers", status="PENDING", age=age) == 1
    assert sample(stack, "needs_person", reason="core_contradiction") == 1
    assert (await stack.transfer(transfer.id)).needs_person is Need.CORE_CONTRADICTION


async def test_the_settler_finishes_what_cores_confirm_later(start):
    """A verdict over the bus ends the transfer; while the store or the bus fails it stays owed, and is not lost."""
    stack = await start(in_front_of_core=(moods := Moods()))
    moods.silent |= {"alpha", "beta"}
    transfers = [await stack.accepted(f"key{n}", target=["spot", "futures"][n % 2]) for n in range(6)]
    stack.scripts[System.STORE].add("get", FailBefore(), NeverAnswer())
    stack.scripts[System.BUS].add("acknowledge", FailBefore(), LoseAnswer(), NeverAnswer())
    await stack.bus.publish(moods.said)
    await stack.clock.settle()
    assert stack.bus.owed == 6
    await stack.pass_time(30)
    assert stack.bus.owed == 0
    assert {(await stack.transfer(each.id)).status for each in transfers} == {Status.SUCCESS}


async def test_the_settler_survives_a_bus_that_fails_to_deliver(start):
    """Taking from the bus fails: the role stays and takes again."""
    stack = await start(in_front_of_core=(moods := Moods()))
    moods.silent.add("alpha")
    stack.scripts[System.BUS].add("take", None, FailBefore())
    first, second = await stack.accepted("first"), await stack.accepted("second")
    await stack.bus.publish(moods.said[:1])
    await stack.pass_time(1)
    await stack.bus.publish(moods.said[1:])
    await stack.pass_time(3)
    assert [(await stack.transfer(each.id)).status for each in (first, second)] == [Status.SUCCESS] * 2
    assert not stack.tasks[1].done()


async def test_a_verdict_that_shows_a_bug_does_not_hold_up_the_others(start):
    """One verdict of a delivery breaks the settler's work: it is counted and left to the scanner, the others count."""
    stack = await start(in_front_of_core=(moods := Moods()))
    moods.silent.add("alpha")
    poison, healthy = await stack.accepted("poison"), await stack.accepted("healthy")
    original = stack.driver.hear

    def broken(work, verdict):
        if work.transfer.id == poison.id:
            raise AssertionError("a bug")
        original(work, verdict)

    stack.driver.hear = broken
    stack.scripts[System.STORE].add("get", None, FailBefore())
    await stack.bus.publish(moods.said)
    await stack.pass_time(5)
    assert (stack.bus.owed, (await stack.transfer(healthy.id)).status) == (0, Status.SUCCESS)
    assert (await stack.transfer(poison.id)).status is Status.PENDING
    assert sample(stack, "operating_failures_total", system="settler", kind="AssertionError") == 3
    stack.driver.hear = original
    moods.silent.clear()
    await stack.scan_until_quiet()


async def test_a_verdict_without_an_order_is_counted_and_ignored(start):
    """A core that speaks of an unknown transfer, or of one that was not held yet, changes nothing."""
    stack = await start()
    transfer = await requested(stack)
    credit = transfer.target
    for transfer_id in (1, transfer.id):
        verdict = Verdict(transfer_id, Side.TARGET, Action.APPLY, Outcome.APPLIED, "", "USDT", 500, None, credit)
        await stack.settler.settle([verdict])
    assert sample(stack, "unexpected_answers_total", system="core", answer="verdict_without_order") == 2
    assert await stack.transfer(transfer.id) == transfer


async def test_deposits_are_in_a_range_of_their_own(start):
    """A deposit's id is never taken for a transfer's hold."""
    stack = await start()
    assert cash_id("any") > hold_id((await stack.accepted("key")).id)


@pytest.mark.parametrize(("meddlings", "status"), [(1, Status.SUCCESS), (1000, Status.PENDING)])
async def test_a_verdict_outlives_a_lost_race(start, monkeypatch, meddlings, status):
    """Where somebody else records something first, the verdict is heard again on that; a few times, then the scanner's
    next look has to do, so that a settler never stands still over one transfer.
    """
    stack = await start()
    transfer = await pending(stack)
    [verdict] = await stack.core.tell([command_of(transfer, transfer.legs[0], Action.APPLY)])
    record, left = stack.store.record, meddlings

    async def record_second(changes):
        nonlocal left
        if left:
            left -= 1
            now = await stack.transfer(transfer.id)
            await record([Change(now.revision, replace(now, due_at=now.due_at + 1))])
        return await record(changes)

    monkeypatch.setattr(stack.store, "record", record_second)
    await stack.settler.settle([verdict])
    assert (await stack.transfer(transfer.id)).status is status
    left = 0
    await stack.scan_until_quiet()
    assert (await stack.transfer(transfer.id)).status is Status.SUCCESS
    assert await stack.in_core() == 500
