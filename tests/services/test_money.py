"""G1 to G8 and G12, at the level of the services: what may and may not happen to money."""

import asyncio

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.identifier import hold_id, post_id, void_id
from internal_transfer.domain.leg import Action, Command, LegState, Outcome
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Decision, IllegalTransition, Need, Status
from internal_transfer.ports.errors import System
from internal_transfer.ports.ledger import LedgerTransfer, TransferFlag
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.gateway import GatewayBounds
from internal_transfer.simulation.faults import ArriveLate, Delay, Duplicate, FailBefore, LoseAnswer
from services.books import check_books, check_resolutions
from services.fronts import Moods


async def mixed_work(stack, moods):
    """Makes transfers of every kind and outcome, one after the other, and returns them."""
    transfers = [
        await stack.accepted("to core", "5"),
        await stack.accepted("to ledger", "7", target="earn"),
        await stack.accepted("core to core", "3", source="spot", target="futures"),
        await stack.accepted("within a core", "1", source="spot", target="margin"),
        await stack.accepted("from core", "1", source="futures", target="funding"),
        await stack.accepted("too much", "5000"),
        await stack.accepted("too much in the core", "50", source="spot", target="funding"),
    ]
    moods.modes["beta"] = CoreMode.REFUSE
    transfers.append(await stack.accepted("second core refuses", "1", source="spot", target="futures"))
    moods.modes["beta"] = CoreMode.WITHHOLD
    transfers.append(await stack.accepted("open", "2", target="futures"))
    return transfers


async def test_g1_debits_equal_credits_at_every_instant(start):
    """Held, posted, voided and still open: at no timestamp of the ledger do debits and credits differ."""
    stack = await start(in_front_of_core=(moods := Moods()))
    transfers = await mixed_work(stack, moods)
    rows, accounts = await stack.ledger_rows(), await stack.ledger_accounts()
    check_books(rows, accounts)
    assert sum(account.debits_pending for account in accounts.values()) == 200
    assert {transfer.status for transfer in transfers} == {Status.SUCCESS, Status.FAILED, Status.PENDING}


async def test_g2_the_total_changes_only_from_outside(start):
    """Whatever users move, the sum of their accounts is what was deposited."""
    stack = await start(in_front_of_core=(moods := Moods()), deposit=12_345)
    await stack.deposit("bob", 55)
    await mixed_work(stack, moods)
    check_books(await stack.ledger_rows(), await stack.ledger_accounts(), {"USDT": 12_400})


@pytest.mark.parametrize("target", ["earn", "spot"])
@pytest.mark.parametrize("workers", [1, 4])
async def test_g3_as_many_racing_spends_succeed_as_the_balance_allows(start, target, workers):
    """Forty spends of 3 race for 100: exactly 33 succeed, and 1 is left."""
    stack = await start(deposit=100_00, each_call=True, gateway=GatewayBounds(batches_at_once=workers, batch_most=3))
    stack.scripts[System.LEDGER].add("create_transfers", *[Delay(0.2, 0.1)] * 6)
    spends = asyncio.gather(*(stack.accepted(f"key{n}", "3", target=target) for n in range(40)))
    transfers = await stack.patiently(_all(spends))
    statuses = [transfer.status for transfer in transfers]
    assert statuses.count(Status.SUCCESS) == 33
    assert {transfer.failure for transfer in transfers if transfer.status is not Status.SUCCESS} == {
        Code.INSUFFICIENT_BALANCE
    }
    assert (await stack.posted("funding"), await stack.held()) == (100, 0)
    check_books(await stack.ledger_rows(), await stack.ledger_accounts(), {"USDT": 100_00})


async def _all(gathered):
    return await gathered


async def two_wills(start, *, post_first):
    """A core's late "applied" is settled while an operator's void is carried out; the calls of the two cross.

    The post arrives before the scanner asks anything, or else between its reversal of the leg and its void.
    """
    stack = await start(each_call=True, call_seconds=60.0)
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("key", "5")
    stack.core.mode = CoreMode.NORMAL
    stack.scripts[System.CORE].add("tell", LoseAnswer(), None, Delay(0.0, 6.0))
    await stack.pass_time(4)
    await stack.scanner.scan()  # It is applied now, and nobody has heard so.
    [[applied]] = await stack.core.verdicts([transfer.id])
    stack.scripts[System.LEDGER].add("create_transfers", Delay(0.0, 3.0) if post_first else Delay(3.0, 0.0))
    await stack.bus.publish([applied])
    await stack.clock.settle()
    await stack.decide(await stack.transfer(transfer.id), Decision.VOID)
    await stack.patiently(stack.scanner.scan())
    await stack.pass_time(20)
    await stack.scan_until_quiet()
    return stack, await stack.transfer(transfer.id)


@pytest.mark.parametrize("post_first", [True, False])
async def test_g4_a_hold_is_posted_or_voided_never_both(start, post_first):
    """A post is on its way when an operator voids: one of the two resolves the hold, once and for ever."""
    stack, transfer = await two_wills(start, post_first=post_first)
    check_resolutions(await stack.ledger_rows(), {transfer.id: transfer})
    rows, held = await stack.ledger_rows(), hold_id(transfer.id)
    again = [
        LedgerTransfer(
            id=post_id(transfer.id, 9), pending_id=held, amount=500, flags=TransferFlag.POST_PENDING_TRANSFER
        ),
        LedgerTransfer(id=void_id(transfer.id, 9), pending_id=held, flags=TransferFlag.VOID_PENDING_TRANSFER),
    ]
    outcomes = [outcome.status.value for outcome in await stack.ledger.create_transfers(again)]
    assert outcomes == [f"pending_transfer_already_{'posted' if post_first else 'voided'}"] * 2
    assert await stack.ledger_rows() == rows


async def test_g7_a_void_that_comes_first_undoes_everything(start):
    """The post that was on the way comes to nothing, the leg is taken back, the money is returned."""
    stack, transfer = await two_wills(start, post_first=False)
    assert (transfer.status, transfer.failure) == (Status.FAILED, Code.VOIDED_BY_OPERATOR)
    assert await stack.moves(transfer.id) == {("target", "apply"): 1, ("target", "reverse"): 1}
    assert (await stack.posted("funding"), await stack.held(), await stack.in_core()) == (100_000, 0, 0)


async def test_g7_a_post_that_comes_first_makes_the_void_too_late(start):
    """The transfer that was posted and applied is SUCCESS, whatever was decided afterwards."""
    stack, transfer = await two_wills(start, post_first=True)
    assert transfer.status is Status.SUCCESS
    assert await stack.moves(transfer.id) == {("target", "apply"): 1}
    assert (await stack.posted("funding"), await stack.held(), await stack.in_core()) == (99_500, 0, 500)


FAULTY_CALLS = [
    (System.STORE, "by_keys"),
    (System.STORE, "accept"),
    (System.STORE, "register"),
    (System.STORE, "record"),
    (System.STORE, "events"),
    (System.LEDGER, "create_accounts"),
    (System.LEDGER, "create_transfers"),
    (System.LEDGER, "lookup_transfers"),
    (System.CORE, "tell"),
    (System.LIMITER, "take"),
]


@pytest.mark.parametrize(
    "fault", [FailBefore(), LoseAnswer(), Duplicate(), ArriveLate(), Delay(30.0, 0), Delay(0, 30.0)]
)
@pytest.mark.parametrize(("system", "method"), FAULTY_CALLS)
async def test_g5_any_call_may_fail_or_come_twice_and_there_is_one_effect(start, system, method, fault):
    """Each call of a transfer, first, second or third, lost, late or repeated, and the client tries again until it is
    final: one hold, one post, and each leg applied once.
    """
    stack = await start(each_call=True)
    await stack.accepted("before", "50")
    for nth in range(3):
        stack.scripts[system].add(method, *[None] * nth, fault)
        for _ in range(6):
            try:
                answer = await stack.patiently(stack.submit(f"key{nth}", "5", source="spot", target="futures"))
            except Exception as error:  # noqa: BLE001 - whichever it is, the client tries again.
                assert type(error).__name__ in {"Unavailable", "OutcomeUnknown"}  # noqa: PT017
            await stack.faults[system].deliver_late()
            await stack.pass_time(31)
            await stack.scanner.scan()
        assert answer.transfer.status is Status.SUCCESS
        assert await stack.moves(answer.transfer.id) == {("source", "apply"): 1, ("target", "apply"): 1}
        own = [row for row in await stack.ledger_rows() if row.id >> 64 == answer.transfer.id]
        assert [row.flags for row in own] == [2, 4]
    assert (await stack.in_core("spot"), await stack.in_core("futures")) == (3_500, 1_500)
    check_books(await stack.ledger_rows(), await stack.ledger_accounts(), {"USDT": 100_000})


async def test_g5_verdicts_that_come_again_in_any_order_have_no_effect(start):
    """Redelivered, also after the end, a core's verdicts change nothing."""
    stack = await start()
    transfer = await stack.accepted("key", "5", target="spot")
    [verdicts] = await stack.core.verdicts([transfer.id])
    await stack.bus.publish(verdicts * 3)
    await stack.clock.settle()
    assert await stack.transfer(transfer.id) == transfer
    assert await stack.in_core() == 500
    assert stack.bus.owed == 0


async def test_g7_a_reversed_leg_counts_as_not_applied(start):
    """The second core refuses: the first is reversed, the money is given back, and the transfer says why."""
    stack = await start(in_front_of_core=(moods := Moods()))
    await stack.accepted("before", "50")
    moods.modes["beta"] = CoreMode.REFUSE
    transfer = await stack.accepted("key", "5", source="spot", target="futures")
    assert (transfer.status, transfer.failure) == (Status.FAILED, Code.CORE_REFUSED)
    assert [leg.state for leg in transfer.legs] == [LegState.REVERSED, LegState.REFUSED]
    assert await stack.moves(transfer.id) == {("source", "apply"): 1, ("source", "reverse"): 1}
    assert (await stack.in_core("spot"), await stack.in_core("futures")) == (5_000, 0)


async def test_g7_an_unknown_second_leg_is_cancelled_before_the_first_is_reversed(start):
    """An operator voids while the second core is silent: its cancel comes first, so that it can never apply."""
    stack = await start(in_front_of_core=(moods := Moods()))
    await stack.accepted("before", "50")
    moods.modes["beta"] = CoreMode.WITHHOLD
    transfer = await stack.accepted("key", "5", source="spot", target="futures")
    assert [leg.state for leg in transfer.legs] == [LegState.APPLIED, LegState.ASKED]
    await stack.decide(transfer, Decision.VOID)
    await stack.scanner.scan()
    after = await stack.transfer(transfer.id)
    assert (after.status, after.failure) == (Status.FAILED, Code.VOIDED_BY_OPERATOR)
    [verdicts] = await stack.core.verdicts([transfer.id])
    said = [(verdict.side.value, verdict.outcome.value) for verdict in verdicts]
    assert said == [("source", "applied"), ("target", "cancelled"), ("source", "reversed")]
    moods.modes.clear()
    late = await stack.core.tell([command_again(verdicts[1])])
    assert late[0].outcome is Outcome.CANCELLED
    assert (await stack.in_core("spot"), await stack.in_core("futures")) == (5_000, 0)


def command_again(verdict):
    return Command(
        verdict.transfer_id, "beta", verdict.side, Action.APPLY, verdict.asset, verdict.amount, None, verdict.credit
    )


@pytest.mark.parametrize("kept", ["post", "void"])
async def test_g7_what_was_heard_and_lost_in_a_crash_is_asked_again(start, kept):
    """The process dies between resolving the hold and recording the end: the next one comes to the same end."""
    stack = await start(each_call=True)
    stack.core.mode = CoreMode.NORMAL if kept == "post" else CoreMode.REFUSE
    records = 0

    def fuse(when, _system, method):
        nonlocal records
        records += (when, method) == ("before", "record")
        return records == 2

    stack.fuse = fuse
    asked = asyncio.ensure_future(stack.submit("key", "5"))
    await stack.clock.settle()
    assert stack.dead
    asked.cancel()
    stack.fuse = lambda *_: False
    await stack.restart()
    stack.core.mode = CoreMode.NORMAL
    await stack.scan_until_quiet()
    answer = await stack.submit("key", "5")
    wanted = (Status.SUCCESS, 500, 99_500) if kept == "post" else (Status.FAILED, 0, 100_000)
    assert (answer.transfer.status, await stack.in_core(), await stack.posted("funding")) == wanted


async def contradicted(stack, transfer, **lie):
    """The transfer after its core says something else than it was told."""
    [verdicts] = await stack.core.verdicts([transfer.id])
    await stack.settler.settle([replace(verdicts[0], **lie)])
    return await stack.transfer(transfer.id)


@pytest.mark.parametrize("lie", [{"amount": 999}, {"asset": "BTC"}, {"outcome": Outcome.MISMATCH}, {"side": "source"}])
async def test_g7_a_contradiction_needs_a_person_and_moves_nothing(start, lie):
    """A verdict that is not about what was told decides nothing; a person's decision ends it."""
    stack = await start(in_front_of_core=(moods := Moods()))
    moods.silent.add("alpha")
    transfer = await contradicted(stack, await stack.accepted("key", "5"), **lie)
    assert (transfer.status, transfer.needs_person) == (Status.PENDING, Need.CORE_CONTRADICTION)
    assert await stack.held() == 500
    moods.silent.clear()
    await stack.pass_time(10)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.PENDING
    await stack.decide(await stack.transfer(transfer.id), Decision.VOID)
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.FAILED
    assert (await stack.posted("funding"), await stack.held(), await stack.in_core()) == (100_000, 0, 0)


async def test_g8_a_final_state_never_changes(start):
    """Neither the store nor a scan nor a decision nor a verdict moves a transfer that is final."""
    stack = await start()
    transfer = await stack.accepted("key", "5")
    failed = replace(transfer, status=Status.FAILED, version=transfer.version + 1)
    with pytest.raises(IllegalTransition):
        await stack.store.record([Change(transfer.revision, failed)])
    with pytest.raises(IllegalTransition):
        await stack.decide(transfer, Decision.VOID)
    await stack.store.make_due(now_ms=stack.clock.now_ms() + 10**9)
    assert await stack.scanner.scan() == 0
    assert await stack.transfer(transfer.id) == transfer
    [events] = await stack.store.events([transfer.id])
    assert [event.status.value for event in events] == ["REQUESTING", "PENDING", "SUCCESS"]


async def test_g12_replaying_the_ledger_gives_its_balances(start):
    """Also after a restart, the transfers alone add up to every account's balances, and each hold was resolved once."""
    stack = await start(in_front_of_core=(moods := Moods()))
    transfers = {transfer.id: transfer for transfer in await mixed_work(stack, moods)}
    moods.modes.clear()
    await stack.restart()
    check_books(await stack.ledger_rows(), await stack.ledger_accounts(), {"USDT": 100_000})
    await stack.scan_until_quiet()
    transfers = {each: await stack.transfer(each) for each in transfers}
    rows = await stack.ledger_rows()
    check_books(rows, await stack.ledger_accounts(), {"USDT": 100_000})
    check_resolutions(rows, transfers)
    assert any(row.id == hold_id(min(transfers)) for row in rows)
