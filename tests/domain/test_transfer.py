"""The state machine, compared with tables that are written out here and not derived from the code."""

import itertools

import pytest
from msgspec.structs import replace

from internal_transfer.domain.account import Account
from internal_transfer.domain.leg import Action, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import (
    CreateHold,
    Decision,
    Facts,
    FenceHold,
    FencePost,
    Finished,
    Hold,
    IllegalTransition,
    LookAtHold,
    Need,
    PostHold,
    Status,
    Tell,
    Transfer,
    VoidHold,
    Wait,
    Write,
    advance,
    check_change,
    command_of,
    heard,
    next_step,
    with_leg,
)

SOURCE, TARGET = Account("u", "funding", "USDT"), Account("u", "spot", "USDT")


def transfer_of(*states, status=Status.PENDING, sides=None, **fields):
    """A transfer in a status, with one leg in each of the states."""
    sides = sides or {0: (), 1: (Side.TARGET,), 2: (Side.SOURCE, Side.TARGET)}[len(states)]
    legs = tuple(Leg(side, "core", state) for side, state in zip(sides, states, strict=True))
    return Transfer(
        id=7,
        owner="u",
        key="k",
        source=SOURCE,
        target=TARGET,
        amount=5,
        memo=None,
        legs=legs,
        created_at=1,
        updated_at=1,
        due_at=1,
        status=status,
        **fields,
    )


def named(step, before):
    """Names a step in the words of the tables below."""
    match step:
        case Tell(leg, action):
            return action.value if len(before.legs) == 1 else f"{action.value} {leg.side}"
        case Write(after) if after.status is not before.status:
            assert after.version == before.version + 1
            return f"{after.status} {after.failure}" if after.failure else after.status.value
        case Write(after) if after.needs_person is not before.needs_person:
            return f"needs {after.needs_person}"
        case Write(after) if after.legs != before.legs:
            changes = zip(before.legs, after.legs, strict=True)
            return " ".join(f"{new.side} {new.state}" for old, new in changes if new != old)
        case Write(after) if after.fencing and not before.fencing:
            return "fencing"
        case Write(after) if after.post_attempt == before.post_attempt + 1:
            return "new post id"
        case Write(after) if after.void_attempt == before.void_attempt + 1:
            return "new void id"
        case _:
            return {
                LookAtHold: "look",
                CreateHold: "create",
                FenceHold: "fence",
                FencePost: "fence the post",
                PostHold: "post",
                VoidHold: "void",
                Wait: "wait",
                Finished: "finished",
            }[type(step)]


ALLOWED = {
    ("REQUESTING", "PENDING"),
    ("REQUESTING", "FAILED"),
    ("PENDING", "SUCCESS"),
    ("PENDING", "FAILED"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Status, Status)))
def test_the_transition_table(before, after):
    """G8: four changes of status exist; every other raises and changes nothing."""
    transfer = transfer_of(status=before, needs_person=Need.HOLD_COLLISION)
    if (before.value, after.value) in ALLOWED:
        moved = advance(transfer, after, failure=Code.EXPIRED)
        assert (moved.status, moved.version, moved.failure, moved.needs_person) == (after, 2, Code.EXPIRED, None)
    else:
        with pytest.raises(IllegalTransition, match=f"7: {before} -> {after}"):
            advance(transfer, after)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Status, Status)))
def test_a_store_records_what_the_table_allows_and_changes_of_open_transfers(before, after):
    """G8: the four changes of status and changes that keep an open status may be recorded; a final transfer takes no
    change.
    """
    old = transfer_of(status=before)
    new = replace(old, status=after, version=1 + (after is not before), attempts=1)
    if (before.value, after.value) in ALLOWED | {("REQUESTING", "REQUESTING"), ("PENDING", "PENDING")}:
        check_change(old, new)
    else:
        with pytest.raises(IllegalTransition, match=f"7: {before} -> {after}"):
            check_change(old, new)


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"status": Status.SUCCESS},
        {"status": Status.SUCCESS, "version": 3},
        {"owner": "v"},
        {"key": "l"},
        {"source": TARGET},
        {"target": SOURCE},
        {"amount": 6},
        {"memo": ""},
        {"created_at": 2},
    ],
    ids=str,
)
def test_a_store_records_no_wrong_version_and_no_change_of_a_fixed_field(wrong):
    """The version counts changes of status, and what the user asked for never changes."""
    before = transfer_of()
    with pytest.raises(AssertionError, match=r"^7: "):
        check_change(before, replace(before, **wrong))


LEGS = ["no leg", "not_asked", "asked", "applied", "refused", "reversing", "reversed", "cancelled"]
UNPOSTED = ["needs posted_without_legs"]
UNVOIDED = ["needs voided_with_legs"]
NO, BY_PERSON = "FAILED CORE_REFUSED", "FAILED VOIDED_BY_OPERATOR"
WHILE_PENDING = {
    (None, "unknown"): ["look"] * 8,
    (None, "absent"): ["needs hold_missing"] * 8,
    (None, "refused"): ["needs hold_missing"] * 8,
    (None, "burnt"): ["needs hold_missing"] * 8,
    (None, "foreign"): ["needs hold_collision"] * 8,
    (None, "unexpected"): ["wait"] * 8,
    (None, "held"): ["post", "target asked", "apply", "post", "void", "reverse", "void", "void"],
    (None, "posted"): ["SUCCESS", "target asked", "apply", "SUCCESS", *UNPOSTED * 4],
    (None, "voided"): [*UNVOIDED * 2, "cancel", *UNVOIDED, NO, "reverse", NO, NO],
    ("void", "unknown"): ["look"] * 8,
    ("void", "absent"): ["needs hold_missing"] * 8,
    ("void", "refused"): ["needs hold_missing"] * 8,
    ("void", "burnt"): ["needs hold_missing"] * 8,
    ("void", "foreign"): ["needs hold_collision"] * 8,
    ("void", "unexpected"): ["wait"] * 8,
    ("void", "held"): ["void", "void", "cancel", "fence the post", "void", "reverse", "void", "void"],
    ("void", "posted"): ["SUCCESS", *UNPOSTED, "cancel", "SUCCESS", *UNPOSTED * 4],
    ("void", "voided"): [BY_PERSON, BY_PERSON, "cancel", *UNVOIDED, NO, "reverse", BY_PERSON, BY_PERSON],
    ("post", "unknown"): ["look"] * 8,
    ("post", "absent"): ["needs hold_missing"] * 8,
    ("post", "refused"): ["needs hold_missing"] * 8,
    ("post", "burnt"): ["needs hold_missing"] * 8,
    ("post", "foreign"): ["needs hold_collision"] * 8,
    ("post", "unexpected"): ["wait"] * 8,
    ("post", "held"): ["post", "post", "post", "post", "void", "reverse", "void", "void"],
    ("post", "posted"): ["SUCCESS"] * 8,
    ("post", "voided"): [*UNVOIDED * 2, "cancel", *UNVOIDED, NO, "reverse", NO, NO],
}


@pytest.mark.parametrize(
    ("decision", "hold"), list(itertools.product([None, "void", "post"], [hold.value for hold in Hold]))
)
def test_the_next_step_of_a_pending_transfer(decision, hold):
    """Status x hold x leg x decision: each combination gives exactly the step in the table."""
    expected = WHILE_PENDING[decision, hold]
    seen = []
    for state in LEGS:
        states = [] if state == "no leg" else [LegState(state)]
        transfer = transfer_of(*states, decision=decision and Decision(decision))
        seen.append(named(next_step(transfer, Facts(Hold(hold))), transfer))
    assert dict(zip(LEGS, seen, strict=True)) == dict(zip(LEGS, expected, strict=True))


TWO_LEGS = [
    # source, target, decision, hold, step
    ("not_asked", "not_asked", None, "held", "source asked"),
    ("asked", "not_asked", None, "held", "apply source"),
    ("applied", "not_asked", None, "held", "target asked"),
    ("applied", "asked", None, "held", "apply target"),
    ("applied", "applied", None, "held", "post"),
    ("refused", "not_asked", None, "held", "void"),
    ("applied", "refused", None, "held", "source reversing"),
    ("reversing", "refused", None, "held", "reverse source"),
    ("reversed", "refused", None, "held", "void"),
    ("applied", "cancelled", None, "held", "source reversing"),
    ("applied", "asked", "void", "held", "cancel target"),
    ("applied", "applied", "void", "held", "fence the post"),
    ("applied", "reversing", "void", "held", "reverse target"),
    ("applied", "reversed", "void", "held", "fence the post"),
    ("asked", "not_asked", "void", "held", "cancel source"),
    ("cancelled", "not_asked", "void", "held", "void"),
    ("applied", "not_asked", "post", "held", "post"),
    ("applied", "refused", "post", "held", "fence the post"),
    ("applied", "asked", None, "posted", "apply target"),
    ("applied", "not_asked", None, "posted", "target asked"),
    ("applied", "refused", None, "posted", "needs posted_without_legs"),
    ("reversed", "refused", None, "voided", "FAILED CORE_REFUSED"),
    ("reversing", "refused", None, "voided", "reverse source"),
    ("applied", "refused", None, "voided", "needs voided_with_legs"),
    ("reversing", "asked", None, "voided", "cancel target"),
]


@pytest.mark.parametrize(("source", "target", "decision", "hold", "step"), TWO_LEGS)
def test_the_next_step_with_two_cores(source, target, decision, hold, step):
    """The source is debited first and reversed last, and only once the target is known to be clear."""
    transfer = transfer_of(LegState(source), LegState(target), decision=decision and Decision(decision))
    assert named(next_step(transfer, Facts(Hold(hold))), transfer) == step


WHILE_REQUESTING = {
    # hold: (in time, expired, fencing, decided to void, decided to post)
    "unknown": ("look", "look", "look", "look", "look"),
    "absent": ("create", "fencing", "fence", "fencing", "create"),
    "held": ("PENDING", "PENDING", "PENDING", "PENDING", "PENDING"),
    "posted": ("PENDING", "PENDING", "PENDING", "PENDING", "PENDING"),
    "voided": ("PENDING", "PENDING", "PENDING", "PENDING", "PENDING"),
    "refused": ("FAILED INSUFFICIENT_BALANCE",) * 5,
    "burnt": (
        "FAILED INSUFFICIENT_BALANCE",
        "FAILED INSUFFICIENT_BALANCE",
        "FAILED EXPIRED",
        "FAILED VOIDED_BY_OPERATOR",
        "FAILED INSUFFICIENT_BALANCE",
    ),
    "foreign": (*["needs hold_collision"] * 3, "FAILED VOIDED_BY_OPERATOR", "needs hold_collision"),
    "unexpected": ("fencing", "fencing", "fence", "fencing", "fencing"),
}


@pytest.mark.parametrize("hold", [hold.value for hold in Hold])
def test_the_next_step_of_a_requesting_transfer(hold):
    """Before a hold is on record, nothing fails without a refusal, a burnt hold or a decision."""
    in_time, late = Facts(Hold(hold)), Facts(Hold(hold), expired=True)
    new = transfer_of(LegState.NOT_ASKED, status=Status.REQUESTING)
    cases = [
        (new, in_time),
        (new, late),
        (replace(new, fencing=True), late),
        (replace(new, decision=Decision.VOID), in_time),
        (replace(new, decision=Decision.POST), in_time),
    ]
    assert tuple(named(next_step(transfer, facts), transfer) for transfer, facts in cases) == WHILE_REQUESTING[hold]


@pytest.mark.parametrize(
    ("hold", "decision", "state"),
    [
        (Hold.HELD, None, LegState.ASKED),
        (Hold.POSTED, None, LegState.ASKED),
        (Hold.VOIDED, None, LegState.NOT_ASKED),
        (Hold.HELD, Decision.VOID, LegState.NOT_ASKED),
        (Hold.HELD, Decision.POST, LegState.NOT_ASKED),
    ],
)
def test_the_first_leg_is_asked_with_the_hold(hold, decision, state):
    """PENDING and "asked" are one write; no leg is asked where money is given back or people have decided."""
    transfer = transfer_of(LegState.NOT_ASKED, status=Status.REQUESTING, decision=decision)
    step = next_step(transfer, Facts(hold))
    assert isinstance(step, Write)
    assert step.after.legs[0].state is state


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED])
@pytest.mark.parametrize("hold", list(Hold))
def test_a_final_transfer_is_finished(status, hold):
    """G8: a final transfer stays as it is, whatever is learnt about its hold."""
    assert next_step(transfer_of(LegState.ASKED, status=status), Facts(hold)) == Finished()


def test_who_needs_a_person_waits():
    """A transfer that needs a person waits until a decision is recorded."""
    for status in (Status.REQUESTING, Status.PENDING):
        waiting = transfer_of(LegState.APPLIED, status=status, needs_person=Need.HOLD_COLLISION)
        assert next_step(waiting, Facts(Hold.HELD)) == Wait()
        decided = replace(waiting, decision=Decision.VOID)
        assert next_step(decided, Facts(Hold.HELD)) != Wait()


def test_the_same_need_is_recorded_once():
    """A transfer waits for the need that is on record; a new need replaces it."""
    transfer = transfer_of(LegState.ASKED)
    contradiction = Facts(Hold.HELD, contradiction=Need.CORE_CONTRADICTION)
    step = next_step(transfer, contradiction)
    assert named(step, transfer) == "needs core_contradiction"
    assert next_step(step.after, contradiction) == Wait()
    other = Facts(Hold.HELD, contradiction=Need.CORE_REFUSES_REVERSAL)
    assert named(next_step(step.after, other), step.after) == "needs core_refuses_reversal"


def test_a_silent_core_is_not_asked_twice_in_a_row():
    """A command that was sent in this round of work is not sent again; one with another action may be."""
    transfer = transfer_of(LegState.ASKED)
    told = Facts(Hold.HELD, told=frozenset({(Side.TARGET, Action.APPLY)}))
    assert next_step(transfer, told) == Wait()
    assert named(next_step(replace(transfer, decision=Decision.VOID), told), transfer) == "cancel"


def test_a_burnt_resolution_gets_a_new_id_that_is_recorded_first():
    """A post or void whose id is burnt is never sent again under that id."""
    applied, refused = transfer_of(LegState.APPLIED), transfer_of(LegState.REFUSED)
    assert named(next_step(applied, Facts(Hold.HELD, post_burnt=True)), applied) == "new post id"
    assert named(next_step(refused, Facts(Hold.HELD, void_burnt=True)), refused) == "new void id"


@pytest.mark.parametrize("decision", list(Decision))
def test_no_leg_is_reversed_before_the_post_is_impossible(decision):
    """G7: after a decision a process may still be posting, so the post's id is burnt before a leg is reversed."""
    transfer = transfer_of(LegState.APPLIED, LegState.REFUSED, decision=decision)
    assert named(next_step(transfer, Facts(Hold.HELD)), transfer) == "fence the post"
    assert named(next_step(transfer, Facts(Hold.HELD, post_fenced=True)), transfer) == "source reversing"


def test_an_unclear_fence_is_not_sent_again_in_the_same_round():
    """After an unclear answer to the fence the transfer stays as it is."""
    transfer = transfer_of(status=Status.REQUESTING, fencing=True)
    assert next_step(transfer, Facts(Hold.ABSENT, fence_unclear=True)) == Wait()


def test_a_refusal_for_lack_of_money_is_told_as_such():
    """The user of a core-held account is told that the balance was too small."""
    leg = Leg(Side.TARGET, "core", LegState.REFUSED, "insufficient_balance")
    transfer = with_leg(transfer_of(LegState.ASKED), leg)
    assert named(next_step(transfer, Facts(Hold.VOIDED)), transfer) == "FAILED INSUFFICIENT_BALANCE"


@pytest.mark.parametrize(
    ("side", "debit", "credit"), [(Side.SOURCE, SOURCE, None), (Side.TARGET, None, TARGET), (Side.BOTH, SOURCE, TARGET)]
)
def test_what_a_core_is_told(side, debit, credit):
    """A command names exactly the accounts that this core moves."""
    transfer = transfer_of(LegState.ASKED, sides=(side,))
    command = command_of(transfer, transfer.legs[0], Action.APPLY)
    assert (command.transfer_id, command.core, command.side, command.action) == (7, "core", side, Action.APPLY)
    assert (command.asset, command.amount, command.debit, command.credit) == ("USDT", 5, debit, credit)


def verdict_of(action, outcome, **fields):
    echoed = {"transfer_id": 7, "side": Side.TARGET, "reason": "why", "asset": "USDT", "amount": 5, "debit": None}
    return Verdict(action=action, outcome=outcome, **{**echoed, "credit": TARGET, **fields})


STATES = ["not_asked", "asked", "applied", "refused", "reversing", "reversed", "cancelled"]
X, SAME = "contradiction", "same"
HEARD = {
    # (action, outcome): the leg's state after it, by its state before, in the order of STATES
    ("apply", "applied"): [X, "applied", SAME, X, SAME, SAME, X],
    ("apply", "refused"): [X, "refused", X, SAME, X, X, X],
    ("apply", "cancelled"): [X, "cancelled", X, X, X, X, SAME],
    ("apply", "reversed"): [X] * 7,
    ("apply", "mismatch"): [X] * 7,
    ("cancel", "applied"): [X, "applied", SAME, X, SAME, SAME, X],
    ("cancel", "refused"): [X, "refused", X, SAME, X, X, X],
    ("cancel", "cancelled"): [X, "cancelled", X, X, X, X, SAME],
    ("cancel", "reversed"): [X] * 7,
    ("cancel", "mismatch"): [X] * 7,
    ("reverse", "applied"): [X] * 7,
    ("reverse", "refused"): [X, X, X, X, "refuses", X, X],
    ("reverse", "cancelled"): [X] * 7,
    ("reverse", "reversed"): [X, X, X, X, "reversed", SAME, X],
    ("reverse", "mismatch"): [X] * 7,
}


@pytest.mark.parametrize(("action", "outcome"), list(itertools.product(Action, Outcome)))
def test_what_a_verdict_does(action, outcome):
    """Action x outcome x state: a verdict moves the leg, confirms the record, or contradicts it."""
    seen = []
    for state in STATES:
        before = transfer_of(LegState(state))
        after, need = heard(before, verdict_of(action, outcome))
        if need is not None:
            assert after == before
            seen.append({Need.CORE_CONTRADICTION: X, Need.CORE_REFUSES_REVERSAL: "refuses"}[need])
        else:
            seen.append(SAME if after == before else after.legs[0].state.value)
    assert seen == HEARD[action.value, outcome.value]


def test_a_refusal_keeps_the_reason():
    """The core's reason is recorded with the leg."""
    after, need = heard(transfer_of(LegState.ASKED), verdict_of(Action.APPLY, Outcome.REFUSED, reason="frozen"))
    assert (after.legs[0].reason, need) == ("frozen", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"transfer_id": 8},
        {"asset": "BTC"},
        {"amount": 6},
        {"debit": SOURCE},
        {"credit": None},
        {"credit": SOURCE},
        {"side": Side.SOURCE},
    ],
)
def test_a_verdict_about_something_else_is_a_contradiction(fields):
    """A verdict that differs from its command in any field, or names a leg that does not exist, changes nothing."""
    transfer = transfer_of(LegState.ASKED)
    assert heard(transfer, verdict_of(Action.APPLY, Outcome.APPLIED, **fields)) == (transfer, Need.CORE_CONTRADICTION)


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED])
def test_a_late_verdict_never_changes_a_final_transfer(status):
    """G8: a verdict that comes after a decision to post is accepted or reported, but never recorded."""
    transfer = transfer_of(LegState.ASKED, status=status, decision=Decision.POST)
    assert heard(transfer, verdict_of(Action.APPLY, Outcome.APPLIED)) == (transfer, None)
    assert heard(transfer, verdict_of(Action.APPLY, Outcome.REFUSED)) == (transfer, Need.CORE_CONTRADICTION)
