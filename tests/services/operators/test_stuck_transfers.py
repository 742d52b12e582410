import json

import msgspec
import pytest

from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.domain.identifier import TransferId, hold_id, post_id
from internal_transfer.domain.leg import Action, Outcome, Side, Verdict
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import Decision, Hold, Need, Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.ledger import LedgerTransfer, TransferFlag
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.operators.audit import Act
from internal_transfer.simulation.faults import FailBefore, LoseAnswer
from services.desks import ACTOR


async def waiting_for_core(stack):
    """A PENDING transfer whose core was asked and says nothing."""
    stack.core.mode = CoreMode.WITHHOLD
    transfer = await stack.accepted("k")
    assert transfer.status is Status.PENDING
    return transfer


async def without_hold(stack):
    """A REQUESTING transfer whose hold never reached the ledger."""
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    transfer = await stack.accepted("k")
    assert transfer.status is Status.REQUESTING
    return transfer


async def mark(stack, transfer, **values):
    """Writes a state into the record, past all rules."""
    [recorded] = await stack.store.record([Change(transfer.revision, msgspec.structs.replace(transfer, **values))])
    assert recorded is not None
    return recorded


def is_refused(answer, code=Code.INVALID_STATE_TRANSITION):
    return isinstance(answer, Refusal) and answer.code is code


async def test_show_of_a_finished_transfer_knows_everything(stack, desks):
    """The evidence of a SUCCESS has its hold, its post and the core's verdict, and nothing is unknown."""
    transfer = await stack.accepted("k")
    evidence = await desks.desk.show(transfer.id)
    assert evidence.transfer.status is Status.SUCCESS
    assert [event.status for event in evidence.events] == [Status.REQUESTING, Status.PENDING, Status.SUCCESS]
    assert evidence.hold is Hold.POSTED
    assert [row.id for row in evidence.ledger] == [hold_id(transfer.id), post_id(transfer.id, 0)]
    assert [verdict.outcome for verdict in evidence.verdicts] == [Outcome.APPLIED]
    assert evidence.unknown == ()
    text = " ".join(evidence.known)
    assert "SUCCESS; that is final" in text
    assert "posted the hold" in text
    assert "told to apply the target leg, said: applied" in text


async def test_show_says_what_nobody_knows_yet(stack, desks):
    """While a core is silent, the hold is known and the leg is not."""
    transfer = await waiting_for_core(stack)
    evidence = await desks.desk.show(transfer.id)
    assert evidence.hold is Hold.HELD
    assert any("will carry out the target leg" in words for words in evidence.unknown)


async def test_show_without_ledger_and_core(stack, desks):
    """Systems that do not answer are shown as unknown, and the rest is still shown."""
    transfer = await waiting_for_core(stack)
    stack.scripts[System.LEDGER].add("lookup_transfers", FailBefore())
    stack.scripts[System.CORE].add("verdicts", FailBefore())
    evidence = await desks.desk.show(transfer.id)
    assert (evidence.ledger, evidence.verdicts, evidence.hold) == (None, None, Hold.UNKNOWN)
    assert len(evidence.unknown) == 2


async def test_show_of_a_transfer_without_a_hold(stack, desks):
    """A hold that is not there may still come, and the evidence says so until it is fenced."""
    transfer = await without_hold(stack)
    evidence = await desks.desk.show(transfer.id)
    assert evidence.hold is Hold.ABSENT
    assert any("may be on its way" in words for words in evidence.unknown)
    assert any("never asked" in words for words in evidence.known)
    await mark(stack, transfer, fencing=True, needs_person=Need.HOLD_COLLISION, decision=Decision.VOID)
    words = " ".join((await desks.desk.show(transfer.id)).known)
    assert "made impossible" in words
    assert "decided to void" in words
    assert "another transfer sits in the ledger" in words


async def test_show_of_a_refused_hold(stack, desks):
    """A transfer that failed for lack of balance has no hold, and its reason is shown."""
    transfer = await stack.accepted("k", "500")
    evidence = await desks.desk.show(transfer.id)
    assert evidence.transfer.status is Status.FAILED
    assert any("INSUFFICIENT_BALANCE" in words for words in evidence.known)
    assert any("never made the hold" in words for words in evidence.known)


async def test_show_of_a_hold_that_is_gone(stack, desks):
    """A record that is ahead of its ledger is called what it is."""
    transfer = await without_hold(stack)
    pending = await mark(stack, transfer, status=Status.PENDING, version=2)
    evidence = await desks.desk.show(pending.id)
    assert any("has no hold, though the record" in words for words in evidence.known)
    assert any("restored" in words for words in evidence.unknown)


async def test_show_of_a_final_transfer_without_verdict(stack, desks):
    """A core without a verdict about a finished leg is a riddle that the evidence names."""
    transfer = await waiting_for_core(stack)
    await desks.desk.post(transfer.id, reason="the core was lost", actor=ACTOR, break_glass=True)
    evidence = await desks.desk.show(transfer.id)
    assert evidence.transfer.status is Status.SUCCESS
    assert any("Why the core 'alpha' has no verdict" in words for words in evidence.unknown)


async def test_show_of_a_leg_on_both_sides(stack, desks):
    """Where one core moves both sides, the evidence says so, with the core's reason."""
    transfer = await stack.accepted("k", source="spot", target="margin")
    evidence = await desks.desk.show(transfer.id)
    assert any("the leg of both sides, said: refused (insufficient_balance)" in words for words in evidence.known)


async def test_show_of_nothing(desks):
    """An unknown id has no evidence."""
    assert await desks.desk.show(TransferId(1)) is None


async def test_show_needs_the_store(stack, desks):
    """Without the store there is nothing to show, and that is a failure."""
    stack.scripts[System.STORE].add("get", FailBefore())
    with pytest.raises(Unavailable):
        await desks.desk.show(TransferId(1))


async def test_lists(stack, desks):
    """Transfers are listed by status, and those open for too long as stuck."""
    done = await stack.accepted("done")
    transfer = await waiting_for_core(stack)
    assert [each.id for each in await desks.desk.by_status(Status.SUCCESS, after=None, most=10)] == [done.id]
    assert await desks.desk.by_status(Status.SUCCESS, after=done.id, most=10) == []
    assert await desks.desk.stuck(most=10) == []
    await stack.pass_time(61, step=61)
    assert [each.id for each in await desks.desk.stuck(most=10)] == [transfer.id]


async def test_void_cancels_the_leg_before_it_gives_back(stack, desks):
    """A void of a transfer whose core is silent cancels in the core, then voids the hold."""
    transfer = await waiting_for_core(stack)
    act = await desks.desk.void(transfer.id, reason="core is down", actor=ACTOR)
    assert isinstance(act, Act)
    assert (act.outcome, act.status, act.request_id) == ("completed", Status.FAILED, transfer.id)
    assert "not yet approved by a second person" in act.note
    recorded = await stack.transfer(transfer.id)
    assert (recorded.decision, recorded.failure) == (Decision.VOID, Code.VOIDED_BY_OPERATOR)
    [verdicts] = await stack.core.verdicts([transfer.id])
    assert [(verdict.action, verdict.outcome) for verdict in verdicts] == [(Action.CANCEL, Outcome.CANCELLED)]
    assert await stack.held() == 0


async def test_the_audit_chain_has_the_decision_before_the_outcome(stack, desks):
    """Each act leaves the entry that names its evidence, and then one with what became of it."""
    transfer = await waiting_for_core(stack)
    act = await desks.desk.void(transfer.id, reason="core is down", actor=ACTOR)
    links = await stack.operations.audit(after=0, most=100)
    decided, after = [link for link in links if link.entry.action == "void"]
    assert decided.number == act.audit_id
    assert (decided.entry.actor, decided.entry.reason, decided.entry.outcome) == (ACTOR, "core is down", "decided")
    assert after.entry.outcome == "completed: FAILED"
    evidence = json.loads(decided.entry.evidence)
    assert evidence["hold"] == "held"
    assert evidence["legs"] == [["target", "alpha", "asked"]]
    assert len(evidence["digest"]) == 64
    assert await stack.operations.verify_audit() is None


async def test_a_decision_whose_recording_is_in_doubt_is_not_called_undone(stack, desks):
    """Where the store does not say whether the decision is on record, whoever decided is told so, the chain says only
    that it was decided, and the scan carries it out.
    """
    transfer = await waiting_for_core(stack)
    stack.scripts[System.STORE].add("record", LoseAnswer())
    with pytest.raises(OutcomeUnknown):
        await desks.desk.void(transfer.id, reason="core is down", actor=ACTOR)
    links = await stack.operations.audit(after=0, most=100)
    assert [link.entry.outcome for link in links if link.entry.action == "void"] == ["decided"]
    stack.core.mode = CoreMode.NORMAL
    await stack.scan_until_quiet()
    assert (await stack.transfer(transfer.id)).failure is Code.VOIDED_BY_OPERATOR


async def test_a_void_that_cannot_be_finished_now_is_finished_after_a_crash(stack, desks):
    """The decision is on record, so a process that starts later completes it."""
    transfer = await waiting_for_core(stack)
    stack.core.mode = CoreMode.PAUSED
    act = await desks.desk.void(transfer.id, reason="give it back", actor=ACTOR)
    assert (act.outcome, act.status) == ("started", Status.PENDING)
    await stack.restart()
    await stack.scan_until_quiet()
    recorded = await stack.transfer(transfer.id)
    assert (recorded.status, recorded.failure) == (Status.FAILED, Code.VOIDED_BY_OPERATOR)
    assert await stack.in_core() == 0


async def test_void_before_there_is_a_hold_burns_it(stack, desks):
    """A void of a REQUESTING transfer makes its hold impossible, also for a request that comes late."""
    transfer = await without_hold(stack)
    act = await desks.desk.void(transfer.id, reason="user gave up", actor=ACTOR)
    assert (act.outcome, act.status) == ("completed", Status.FAILED)
    recorded = await stack.transfer(transfer.id)
    assert recorded.fencing
    late = LedgerTransfer(id=hold_id(transfer.id), debit_account_id=1, credit_account_id=2, amount=1, ledger=1, code=1)
    [outcome] = await stack.ledger.create_transfers([late])
    assert outcome.status == "id_already_failed"


async def test_void_of_a_hold_that_was_made_and_not_recorded(stack, desks):
    """Where the hold was made though its answer was lost, the fence finds it, and the void gives it back."""
    stack.scripts[System.LEDGER].add("create_transfers", LoseAnswer())
    transfer = await stack.accepted("k")
    assert transfer.status is Status.REQUESTING
    act = await desks.desk.void(transfer.id, reason="user gave up", actor=ACTOR)
    assert (act.outcome, act.status) == ("completed", Status.FAILED)
    assert await stack.core.verdicts([transfer.id]) == [[]]
    assert await stack.held() == 0


async def test_a_second_void_goes_on_with_the_first(stack, desks):
    """The same decision again is no contradiction: it is driven once more."""
    transfer = await waiting_for_core(stack)
    stack.core.mode = CoreMode.PAUSED
    assert (await desks.desk.void(transfer.id, reason="first", actor=ACTOR)).outcome == "started"
    stack.core.mode = CoreMode.NORMAL
    assert (await desks.desk.void(transfer.id, reason="second", actor=ACTOR)).outcome == "completed"


async def test_post_where_the_core_confirms(stack, desks):
    """A post is taken where look-up says applied, though the confirmation never arrived; the leg is recorded so."""
    stack.scripts[System.CORE].add("tell", LoseAnswer())
    transfer = await stack.accepted("k")
    assert transfer.status is Status.PENDING
    act = await desks.desk.post(transfer.id, reason="core confirmed by phone", actor=ACTOR)
    assert (act.outcome, act.status) == ("completed", Status.SUCCESS)
    assert "not yet approved by a second person" in act.note
    recorded = await stack.transfer(transfer.id)
    assert recorded.decision is Decision.POST
    assert [leg.state for leg in recorded.legs] == ["applied"]


async def test_post_without_confirmation_needs_the_glass_broken(stack, desks):
    """Where the core does not confirm, only break-glass posts, and the audit entry says so."""
    transfer = await waiting_for_core(stack)
    assert is_refused(await desks.desk.post(transfer.id, reason="sure", actor=ACTOR))
    assert (await stack.transfer(transfer.id)).decision is None
    act = await desks.desk.post(transfer.id, reason="core restored by hand", actor=ACTOR, break_glass=True)
    assert (act.outcome, act.status) == ("completed", Status.SUCCESS)
    [link] = [link for link in await stack.operations.audit(after=0, most=100) if link.number == act.audit_id]
    assert json.loads(link.entry.evidence)["break_glass"] is True


async def test_post_while_the_core_does_not_answer(stack, desks):
    """A core that does not answer confirms nothing; breaking the glass still records the post."""
    transfer = await waiting_for_core(stack)
    stack.scripts[System.CORE].add("verdicts", *[FailBefore()] * 3)
    assert is_refused(await desks.desk.post(transfer.id, reason="sure", actor=ACTOR))
    act = await desks.desk.post(transfer.id, reason="sure", actor=ACTOR, break_glass=True)
    assert act.outcome == "completed"


async def test_a_decision_without_the_ledger_is_refused(stack, desks):
    """Nothing is decided while the ledger does not say what became of the hold."""
    transfer = await waiting_for_core(stack)
    stack.scripts[System.LEDGER].add("lookup_transfers", FailBefore(), FailBefore())
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR), Code.LEDGER_UNAVAILABLE)
    assert is_refused(await desks.desk.post(transfer.id, reason="r", actor=ACTOR), Code.LEDGER_UNAVAILABLE)


async def test_final_transfers_take_no_decision(stack, desks):
    """What is final stays as it is, whatever a person wants."""
    transfer = await stack.accepted("k")
    for act in (desks.desk.retry, desks.desk.void, desks.desk.post):
        assert is_refused(await act(transfer.id, reason="r", actor=ACTOR))
    assert [entry for entry in await desks.entries() if entry[0] != "deposit"] == []


async def test_post_of_a_transfer_without_a_hold_is_refused(stack, desks):
    """There is nothing to post before the hold is on record."""
    transfer = await without_hold(stack)
    assert is_refused(await desks.desk.post(transfer.id, reason="r", actor=ACTOR, break_glass=True))


async def test_opposite_decisions_are_refused(stack, desks):
    """A decision that is recorded cannot be turned round."""
    transfer = await waiting_for_core(stack)
    voided = await mark(stack, transfer, decision=Decision.VOID)
    assert is_refused(await desks.desk.post(transfer.id, reason="r", actor=ACTOR, break_glass=True))
    await mark(stack, voided, decision=Decision.POST)
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR))


async def test_post_against_a_cores_refusal_is_refused(stack, desks):
    """Where a core has refused, the money goes back; no glass is broken for that."""
    stack.core.mode = CoreMode.REFUSE
    stack.scripts[System.LEDGER].add("create_transfers", None, FailBefore())
    transfer = await stack.accepted("k")
    assert (transfer.status, transfer.legs[0].state) == (Status.PENDING, "refused")
    assert is_refused(await desks.desk.post(transfer.id, reason="r", actor=ACTOR, break_glass=True))


async def test_holds_that_are_gone_can_be_neither_voided_nor_posted(stack, desks):
    """Where the ledger has no hold of a PENDING transfer, no decision can be carried out, so none is taken."""
    transfer = await without_hold(stack)
    await mark(stack, transfer, status=Status.PENDING, version=2)
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR))
    assert is_refused(await desks.desk.post(transfer.id, reason="r", actor=ACTOR, break_glass=True))


async def test_retry_goes_on_with_what_needed_a_person(stack, desks):
    """After the cause is gone, a retry clears the flag and finishes the transfer."""
    transfer = await waiting_for_core(stack)
    await mark(stack, transfer, needs_person=Need.CORE_CONTRADICTION)
    stack.core.mode = CoreMode.NORMAL
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.PENDING
    act = await desks.desk.retry(transfer.id, reason="core repaired", actor=ACTOR)
    assert (act.outcome, act.status, act.note) == ("completed", Status.SUCCESS, "")


async def test_a_void_overtaken_by_the_fact(stack, desks):
    """A post that the ledger made while the void was recorded wins, and the act says that it did not reach its end."""
    transfer = await waiting_for_core(stack)
    ours = LedgerTransfer(
        id=post_id(transfer.id, 0),
        pending_id=hold_id(transfer.id),
        amount=100,
        flags=TransferFlag.POST_PENDING_TRANSFER,
    )
    applied = Verdict(transfer.id, Side.TARGET, Action.APPLY, Outcome.APPLIED, "", "USDT", 100, None, transfer.target)
    drive = stack.driver.drive

    async def posted_first(works):
        await stack.ledger.create_transfers([ours])
        for work in works:
            stack.driver.hear(work, applied)
        await drive(works)

    stack.driver.drive = posted_first
    act = await desks.desk.void(transfer.id, reason="r", actor=ACTOR)
    assert (act.outcome, act.status) == ("overtaken", Status.SUCCESS)


async def test_a_decision_is_bound_to_what_was_shown(stack, desks):
    """An act that names the evidence it rests on is refused if the facts have changed."""
    transfer = await waiting_for_core(stack)
    shown = (await desks.desk.show(transfer.id)).digest("void")
    stack.core.mode = CoreMode.NORMAL
    await stack.pass_time(10)
    stack.scripts[System.LEDGER].add("create_transfers", FailBefore())
    await stack.scanner.scan()
    assert (await stack.transfer(transfer.id)).status is Status.PENDING
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR, shown=shown))
    fresh = (await desks.desk.show(transfer.id)).digest("void")
    act = await desks.desk.void(transfer.id, reason="r", actor=ACTOR, shown=fresh)
    assert act.outcome == "completed"
    assert await stack.in_core() == 0


async def test_facts_that_change_before_the_decision_is_recorded(stack, desks):
    """The facts are looked at again after the audit entry; if they changed, nothing is recorded but that."""
    transfer = await waiting_for_core(stack)
    append = desks.audit.append

    async def append_and_move(entry):
        number = await append(entry)
        if entry.outcome == "decided":
            now = await stack.transfer(transfer.id)
            await mark(stack, now, needs_person=Need.CORE_CONTRADICTION)
        return number

    desks.audit.append = append_and_move
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR))
    assert (await stack.transfer(transfer.id)).decision is None
    assert (await desks.entries())[-1] == ("void", str(transfer.id), "not carried out: facts changed")


async def test_a_record_that_was_only_put_off_in_between_is_written_anew(stack, desks):
    """A write that changes no fact costs the decision another look, not its place."""
    transfer = await waiting_for_core(stack)
    record = stack.lines[System.STORE].target.record
    bumps = iter([True])

    async def bumped_first(changes):
        if next(bumps, False):
            now = await stack.transfer(transfer.id)
            await record([Change(now.revision, msgspec.structs.replace(now, attempts=7))])
        return await record(changes)

    stack.store.record = bumped_first
    assert (await desks.desk.void(transfer.id, reason="r", actor=ACTOR)).outcome == "completed"


async def test_a_record_that_never_stands_still(stack, desks):
    """Where somebody else writes every time, the decision gives up instead of going on for ever."""
    transfer = await waiting_for_core(stack)
    record = stack.store.record

    async def bumped_first(changes):
        now = await stack.transfer(transfer.id)
        await record([Change(now.revision, msgspec.structs.replace(now, attempts=7))])
        return await record(changes)

    stack.store.record = bumped_first
    assert is_refused(await desks.desk.void(transfer.id, reason="r", actor=ACTOR))


@pytest.mark.parametrize(
    ("reason", "rule"),
    [("", "is required"), ("  ", "is required"), ("x" * 501, "longer than 500"), ("a\nb", "control characters")],
)
async def test_every_act_needs_a_reason(desks, reason, rule):
    """A reason that says nothing, or could not be read in a list, is refused before anything is looked at."""
    answer = await desks.desk.void(TransferId(1), reason=reason, actor=ACTOR)
    assert is_refused(answer, Code.INVALID_REQUEST)
    assert rule in answer.message


async def test_an_unknown_transfer(desks):
    """There is nothing to decide about an id that nobody has."""
    assert is_refused(await desks.desk.retry(TransferId(1), reason="r", actor=ACTOR), Code.TRANSFER_NOT_FOUND)


async def posted_by_breaking_the_glass(stack, desks):
    transfer = await waiting_for_core(stack)
    await desks.desk.post(transfer.id, reason="core restored by hand", actor=ACTOR, break_glass=True)
    return transfer


async def test_acknowledging_what_was_put_right_by_hand(stack, desks):
    """An acknowledgement is one entry of the audit chain, which names the legs; a second one is refused."""
    transfer = await posted_by_breaking_the_glass(stack, desks)
    act = await desks.desk.acknowledge(transfer.id, reason="booked in the core", actor=ACTOR)
    assert (act.action, act.outcome, act.status, act.request_id) == (
        "acknowledge",
        "completed",
        Status.SUCCESS,
        transfer.id,
    )
    [link] = [link for link in await stack.operations.audit(after=0, most=100) if link.entry.action == "acknowledge"]
    assert (link.number, link.entry.actor, link.entry.reason) == (act.audit_id, ACTOR, "booked in the core")
    assert json.loads(link.entry.evidence) == {"sides": ["target"]}
    assert is_refused(await desks.desk.acknowledge(transfer.id, reason="again", actor=ACTOR))
    assert await stack.operations.verify_audit() is None


async def test_only_a_post_by_breaking_the_glass_is_acknowledged(stack, desks):
    """If no operator posted the transfer, or the core has applied it since, there is nothing to acknowledge."""
    done = await stack.accepted("done")
    stack.scripts[System.CORE].add("tell", LoseAnswer())
    confirmed = await stack.accepted("confirmed")
    await desks.desk.post(confirmed.id, reason="core confirmed by phone", actor=ACTOR)
    waiting = await waiting_for_core(stack)
    for transfer in (done, confirmed, waiting):
        assert is_refused(await desks.desk.acknowledge(transfer.id, reason="r", actor=ACTOR))
    assert "acknowledge" not in {action for action, _, _ in await desks.entries()}


async def test_acknowledging_needs_core_reason_and_transfer(stack, desks):
    """A core that does not answer, a reason that says nothing and an id that nobody has are refused."""
    transfer = await posted_by_breaking_the_glass(stack, desks)
    stack.scripts[System.CORE].add("verdicts", FailBefore())
    answer = await desks.desk.acknowledge(transfer.id, reason="r", actor=ACTOR)
    assert is_refused(answer, Code.CORE_UNAVAILABLE)
    assert is_refused(await desks.desk.acknowledge(transfer.id, reason=" ", actor=ACTOR), Code.INVALID_REQUEST)
    assert is_refused(await desks.desk.acknowledge(TransferId(1), reason="r", actor=ACTOR), Code.TRANSFER_NOT_FOUND)
