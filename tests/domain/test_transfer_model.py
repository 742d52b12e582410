"""Model checks of `next_step`: they visit every state that can be reached, and sample none.

In the first check the environment may say anything at any time. In the second the ledger and the cores are honest, but
answers are lost, messages come late and twice, and the process dies between any two steps.
"""

import itertools
from collections import deque
from functools import cache

import pytest
from msgspec.structs import replace

from internal_transfer.domain.account import Account
from internal_transfer.domain.leg import Action, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.transfer import (
    OPEN,
    CreateHold,
    Decision,
    Facts,
    FenceHold,
    FencePost,
    Finished,
    Hold,
    LookAtHold,
    Need,
    PostHold,
    Status,
    Tell,
    Transfer,
    VoidHold,
    Wait,
    Write,
    command_of,
    heard,
    next_step,
)

SIDES = [(), (Side.SOURCE,), (Side.TARGET,), (Side.BOTH,), (Side.SOURCE, Side.TARGET)]
NOT_CLEAR = {LegState.ASKED, LegState.APPLIED, LegState.REVERSING}
TAKEN_BACK = {LegState.REFUSED, LegState.REVERSED, LegState.CANCELLED}


def new_transfer(sides):
    return Transfer(
        id=7,
        owner="u",
        key="k",
        source=Account("u", "spot", "USDT"),
        target=Account("u", "margin", "USDT"),
        amount=5,
        memo=None,
        legs=tuple(Leg(side, "core") for side in sides),
        created_at=1,
        updated_at=1,
        due_at=1,
        status=Status.REQUESTING,
    )


def plain(transfer):
    """The transfer without its counters, so that the number of states is finite."""
    return replace(transfer, version=1, post_attempt=min(transfer.post_attempt, 1), void_attempt=0)


def verdict_of(transfer, leg, action, outcome):
    command = command_of(transfer, leg, action)
    return Verdict(7, leg.side, action, outcome, "", command.asset, command.amount, command.debit, command.credit)


def is_all(transfer, state):
    return all(leg.state is state for leg in transfer.legs)


def every_fact(sides):
    every_command = frozenset(itertools.product(sides, Action))
    no_or_yes = (False, True)
    for hold, expired, told, contradiction, burnt, unclear, fenced in itertools.product(
        Hold, no_or_yes, (frozenset(), every_command), (None, Need.CORE_CONTRADICTION), no_or_yes, no_or_yes, no_or_yes
    ):
        yield Facts(hold, expired, told, contradiction, burnt, burnt, unclear, fenced)


def check_step(before, step):
    """Checks that a step is safe, whatever the environment claims."""
    states = {leg.state for leg in before.legs}
    if before.status not in OPEN:
        assert step == Finished()
    match step:
        case Write(Transfer(legs=(Leg(state=LegState.REVERSING), target))) if before.legs[0].state is LegState.APPLIED:
            assert target.state not in NOT_CLEAR
        case Write(after) if after.status is Status.SUCCESS:
            assert is_all(after, LegState.APPLIED) or after.decision is Decision.POST
        case Write(after) if after.status is Status.FAILED:
            assert not {leg.state for leg in after.legs} & NOT_CLEAR
            assert after.failure is not None
        case Write(after):
            assert after != before
        case VoidHold():
            assert not states & NOT_CLEAR
        case PostHold():
            assert not states & (TAKEN_BACK | {LegState.REVERSING})
            assert states <= {LegState.APPLIED} or before.decision is Decision.POST
        case Tell(leg, action):
            assert leg.state is (LegState.REVERSING if action is Action.REVERSE else LegState.ASKED)
            if action is Action.APPLY and leg.side is Side.TARGET and len(before.legs) == 2:
                assert before.legs[0].state is LegState.APPLIED
        case CreateHold() | FenceHold():
            assert before.status is Status.REQUESTING
        case FencePost():
            assert before.decision is not None


def with_facts_of_write(before, after, facts):
    """The facts after a write; recording a new attempt clears the fact that the last one is burnt."""
    if after.post_attempt != before.post_attempt:
        facts = replace(facts, post_burnt=False)
    if after.void_attempt != before.void_attempt:
        facts = replace(facts, void_burnt=False)
    return facts


@pytest.mark.parametrize("sides", SIDES, ids=lambda sides: "+".join(sides) or "no leg")
def test_no_environment_makes_a_step_unsafe(sides):
    """G7, G8: whatever hold, verdicts and decisions an adversary shows, no reachable state has an unsafe step, and
    while the facts stay the same the steps come to an end.
    """
    start = new_transfer(sides)
    seen, waiting = {start}, deque([start])
    while waiting:
        transfer = waiting.popleft()
        after_it = []
        for facts in every_fact(sides):
            current, known = transfer, facts
            for _ in range(8):
                step = next_step(current, known)
                check_step(current, step)
                if not isinstance(step, Write):
                    break
                known = with_facts_of_write(current, step.after, known)
                current = step.after
                after_it.append(current)
            else:
                pytest.fail(f"no end without new information: {transfer} {facts}")
        for leg, action, outcome in itertools.product(transfer.legs, Action, Outcome):
            after_it.append(heard(transfer, verdict_of(transfer, leg, action, outcome))[0])
        if transfer.status in OPEN and transfer.decision is None:
            after_it += [replace(transfer, decision=decision) for decision in Decision]
        for after in map(plain, after_it):
            if transfer.status not in OPEN:
                assert after == transfer
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    assert {transfer.status for transfer in seen} == set(Status)


# The honest world: (record, memory, hold, cores, on the way). `memory` is what the one process knows: the record it
# started from, the transfer as it knows it, and its facts. A core is its first verdict per action and its effect.

NOTHING_SEEN = (None, None, None, False)
_AT = {Action.APPLY: 0, Action.CANCEL: 1, Action.REVERSE: 2}


def core_answers(core, action):
    """The verdicts that a trading core may give, with its next state, by the table of `ports/trading_core.py`."""
    apply, cancel, reverse, effect = core
    first = core[_AT[action]]
    if first is not None:
        return [(first, core)]
    tombstone = Outcome.CANCELLED in (apply, cancel) or (reverse is not None and apply is None)
    match action:
        case Action.APPLY if tombstone:
            return [(Outcome.CANCELLED, (Outcome.CANCELLED, cancel, reverse, effect))]
        case Action.APPLY:
            return [
                (Outcome.APPLIED, (Outcome.APPLIED, cancel, reverse, True)),
                (Outcome.REFUSED, (Outcome.REFUSED, cancel, reverse, False)),
            ]
        case Action.CANCEL:
            outcome = apply if apply is not None else Outcome.CANCELLED
            return [(outcome, (apply, outcome, reverse, effect))]
        case Action.REVERSE:
            return [(Outcome.REVERSED, (apply, cancel, Outcome.REVERSED, False))]


def ledger_answers(hold, call):
    """The ledger's possible answers to a call, with the hold's next state; a refusal for lack of money burns the id."""
    match call:
        case "create" if hold is Hold.ABSENT:
            return [(Hold.HELD, Hold.HELD), (Hold.REFUSED, Hold.BURNT)]
        case "create":
            return [(Hold.BURNT if hold is Hold.BURNT else Hold.HELD, hold)]
        case "fence":
            burnt = hold in (Hold.ABSENT, Hold.BURNT)
            return [(Hold.BURNT, Hold.BURNT) if burnt else (Hold.UNKNOWN, hold)]
        case "post" | "void":
            assert hold in (Hold.HELD, Hold.POSTED, Hold.VOIDED), "a hold must exist before it is resolved"
            if hold is Hold.HELD:
                hold = Hold.POSTED if call == "post" else Hold.VOIDED
            return [(hold, hold)]


CALLS = {CreateHold: "create", FenceHold: "fence", PostHold: "post", VoidHold: "void"}
step_after = cache(lambda transfer, facts: next_step(transfer, Facts(*facts[:4], post_fenced=facts[4])))
heard_after = cache(heard)
FRESH = (Hold.UNKNOWN, False, frozenset(), None, False)
LATE = (Hold.UNKNOWN, True, frozenset(), None, False)


def after_delivery(world, message):
    """A call or command that was on the way, or is delivered again, takes effect; its answer is lost."""
    record, memory, hold, cores, on_the_way = world
    if isinstance(message, str):
        return [(record, memory, after, cores, on_the_way) for _, after in ledger_answers(hold, message)]
    index, action = message
    return [
        (record, memory, hold, (*cores[:index], core, *cores[index + 1 :]), on_the_way)
        for _, core in core_answers(cores[index], action)
    ]


def after_step(world):
    """The process does the next step: it hears the answer, or dies with the call or command on the way."""
    record, (base, transfer, facts), hold, cores, on_the_way = world
    known_hold, expired, told, contradiction, fenced = facts
    step = step_after(transfer, facts)
    match step:
        case Wait() | Finished():
            return []
        case Write(after):
            if record != base:
                return []
            after = plain(after)
            return [(after, (after, after, facts), hold, cores, on_the_way)]
        case LookAtHold():
            return [(record, (base, transfer, (hold, *facts[1:])), hold, cores, on_the_way)]
        case Tell(leg, action):
            index = next(i for i, own in enumerate(transfer.legs) if own.side is leg.side)
            worlds = []
            for outcome, core in core_answers(cores[index], action):
                after, need = heard_after(transfer, verdict_of(transfer, leg, action, outcome))
                now = (known_hold, expired, told | {(leg.side, action)}, need or contradiction, fenced)
                now_cores = (*cores[:index], core, *cores[index + 1 :])
                worlds.append((record, (base, after, now), hold, now_cores, on_the_way | {(index, action)}))
            return [*worlds, (record, None, hold, cores, on_the_way | {(index, action)})]
        case FencePost():
            # From now on a post that is still on the way has no effect.
            posted = hold is Hold.POSTED
            now = (Hold.UNKNOWN if posted else known_hold, expired, told, contradiction, not posted)
            left = on_the_way - {"post"}
            return [(record, (base, transfer, now), hold, cores, left), (record, None, hold, cores, left)]
        case _:
            call = CALLS[type(step)]
            on_the_way |= {call}
            return [
                *(
                    (record, (base, transfer, (answer, *facts[1:])), after, cores, on_the_way)
                    for answer, after in ledger_answers(hold, call)
                ),
                (record, None, hold, cores, on_the_way),
            ]


def after_start(world):
    """A process takes the transfer up: the scanner, in time or late, or the settler with a verdict in hand."""
    record, _, hold, cores, on_the_way = world
    worlds = [(record, (record, record, facts), hold, cores, on_the_way) for facts in (FRESH, LATE)]
    if record.status is Status.PENDING:
        for leg, core in zip(record.legs, cores, strict=True):
            for action in Action:
                if core[_AT[action]] is not None:
                    transfer, need = heard_after(record, verdict_of(record, leg, action, core[_AT[action]]))
                    facts = (Hold.HELD, False, frozenset(), need, False)
                    worlds.append((record, (record, transfer, facts), hold, cores, on_the_way))
    return worlds


def successors(world, decisions):
    record, memory, hold, cores, on_the_way = world
    worlds = [after for message in on_the_way for after in after_delivery(world, message)]
    if memory is not None:
        worlds.append((record, None, hold, cores, on_the_way))
        worlds += after_step(world)
    elif record.status in OPEN:
        worlds += after_start(world)
    if record.status in OPEN and record.decision is None:
        worlds += [(replace(record, decision=made), memory, hold, cores, on_the_way) for made in decisions]
    return worlds


def check_world(world, decisions):
    record, _, hold, cores, _ = world
    effects = [core[3] for core in cores]
    if record.status is Status.SUCCESS:
        assert hold is Hold.POSTED, world
        assert all(effects) or record.decision is Decision.POST, world
    if record.status is Status.FAILED:
        assert hold in (Hold.VOIDED, Hold.BURNT), world
        assert not any(effects), world
    if Decision.POST not in decisions:
        assert record.needs_person is None, world


@pytest.mark.parametrize(
    ("sides", "decisions"),
    [(sides, made) for made in ((), (Decision.VOID,), (Decision.POST,)) for sides in SIDES],
    ids=lambda names: "+".join(names) or "none",
)
def test_with_honest_systems_the_record_tells_the_truth(sides, decisions):
    """G5, G7, G10: whatever is lost, late, repeated or cut off by a crash, SUCCESS means posted and applied, and FAILED
    means neither now nor ever. No transfer needs a person without cause, even where people void what a process is
    settling, and every state has a way to a final one.
    """
    start = (new_transfer(sides), None, Hold.ABSENT, (NOTHING_SEEN,) * len(sides), frozenset())
    before = {start: []}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        check_world(world, decisions)
        for after in successors(world, decisions):
            if after not in before:
                before[after] = []
                waiting.append(after)
            before[after].append(world)
    ended = deque(world for world in before if world[0].status not in OPEN or world[0].needs_person is not None)
    can_end = set(ended)
    while ended:
        for world in before[ended.popleft()]:
            if world not in can_end:
                can_end.add(world)
                ended.append(world)
    assert can_end == before.keys()
    assert {world[0].status for world in before} == set(Status)
