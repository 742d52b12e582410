"""A transfer, its states, and the one function that decides what to do next.

Theory of the table: a transfer is REQUESTING until its hold is known to exist, PENDING while money is held, and then
SUCCESS (posted) or FAILED (nothing moved, or everything given back). Final states have no way out. Only an explicit
refusal, a burnt hold or a decision by people leads to FAILED. Doubt changes nothing: the transfer stays as it is and is
looked at again.
"""

from enum import StrEnum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import LEG_CLEAR, LEG_UNDONE, Action, Command, Leg, LegState, Outcome, Side, Verdict
from internal_transfer.domain.refusal import Code

INSUFFICIENT_BALANCE = "insufficient_balance"
"""The reason of a core's refusal that users are told as `INSUFFICIENT_BALANCE`."""


class Status(StrEnum):
    """The status that users see."""

    REQUESTING = "REQUESTING"
    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.REQUESTING: frozenset({Status.PENDING, Status.FAILED}),
    Status.PENDING: frozenset({Status.SUCCESS, Status.FAILED}),
    Status.SUCCESS: frozenset(),
    Status.FAILED: frozenset(),
}
OPEN = frozenset({Status.REQUESTING, Status.PENDING})
RECORDABLE = frozenset(
    {(status, status) for status in OPEN} | {(before, after) for before in OPEN for after in TRANSITIONS[before]}
)
"""The (status on record, next status) pairs that a store accepts: an open transfer may also keep its status."""


class Decision(StrEnum):
    """What people decided on evidence; it is stored, so that it is carried out even after a crash."""

    VOID = "void"
    POST = "post"


class Need(StrEnum):
    """Why a transfer needs a person."""

    HOLD_COLLISION = "hold_collision"
    HOLD_MISSING = "hold_missing"
    POSTED_WITHOUT_LEGS = "posted_without_legs"
    VOIDED_WITH_LEGS = "voided_with_legs"
    CORE_CONTRADICTION = "core_contradiction"
    CORE_REFUSES_REVERSAL = "core_refuses_reversal"


class IllegalTransition(Exception):  # noqa: N818 - a bug; the docs use this word.
    """A change of status that is not in the table: a bug. Nothing was changed."""


class Transfer(Struct, frozen=True, kw_only=True):
    """One request to move an amount between two accounts of one asset, as recorded.

    `owner` is the caller, whose key and limits count. `version` starts at 1, counts changes of status and numbers the
    transfer's events; `revision` counts every write of the record, so that a writer who missed one changes nothing.
    Times are wall-clock milliseconds; `amount` is in the asset's smallest units.
    """

    id: TransferId
    owner: Owner
    key: str
    source: Account
    target: Account
    amount: int
    memo: str | None
    legs: tuple[Leg, ...]
    created_at: int
    updated_at: int
    due_at: int
    status: Status = Status.REQUESTING
    version: int = 1
    revision: int = 1
    attempts: int = 0
    fencing: bool = False
    decision: Decision | None = None
    failure: Code | None = None
    needs_person: Need | None = None
    post_attempt: int = 0
    void_attempt: int = 0
    ledger_timestamp: int = 0


class Hold(StrEnum):
    """What is known about a transfer's hold in the ledger.

    UNKNOWN: nobody has looked. ABSENT: a look-up did not find it, so it may only be created or fenced. REFUSED: the
    ledger refused it, durably. BURNT: its id can never be created. FOREIGN: another transfer has its id.
    UNEXPECTED: the ledger gave an answer that should not occur.
    """

    UNKNOWN = "unknown"
    ABSENT = "absent"
    HELD = "held"
    POSTED = "posted"
    VOIDED = "voided"
    REFUSED = "refused"
    BURNT = "burnt"
    FOREIGN = "foreign"
    UNEXPECTED = "unexpected"


class Facts(Struct):
    """What is known about one transfer while it is worked on; never recorded, since it can always be asked for again.

    `told`: the commands already sent in this round of work; a core that stays silent is not asked twice in a row.
    `post_burnt`, `void_burnt`: the id of the recorded attempt is burnt, so a new attempt has to be recorded before
    another post or void is sent; recording it clears the fact.
    `fence_unclear`: the fence was sent, and the answer shows neither that the id is burnt nor that the hold exists.
    `post_fenced`: the id of the recorded post was burnt on purpose, so that no process with older facts can post.
    """

    hold: Hold = Hold.UNKNOWN
    expired: bool = False
    told: frozenset[tuple[Side, Action]] = frozenset()
    contradiction: Need | None = None
    post_burnt: bool = False
    void_burnt: bool = False
    fence_unclear: bool = False
    post_fenced: bool = False


class LookAtHold(Struct, frozen=True):
    """Ask the ledger what became of the hold."""


class CreateHold(Struct, frozen=True):
    """Create the hold under its id."""


class FenceHold(Struct, frozen=True):
    """Make the hold impossible, or learn that it exists."""


class FencePost(Struct, frozen=True):
    """Make the post impossible, or learn that it was done."""


class PostHold(Struct, frozen=True):
    """Settle the hold."""


class VoidHold(Struct, frozen=True):
    """Give the money back."""


class Tell(Struct, frozen=True):
    """Send this command to the leg's core; the record already says that the core is asked."""

    leg: Leg
    action: Action


class Write(Struct, frozen=True):
    """Record this next state of the transfer before doing anything else."""

    after: Transfer


class Wait(Struct, frozen=True):
    """Nothing can be done now: a core or the ledger owes an answer, or the transfer needs a person."""


class Finished(Struct, frozen=True):
    """The transfer is final."""


Step = LookAtHold | CreateHold | FenceHold | FencePost | PostHold | VoidHold | Tell | Write | Wait | Finished


def advance(transfer: Transfer, status: Status, *, failure: Code | None = None) -> Transfer:
    """Returns the transfer in its next status; raises `IllegalTransition` for a change that is not in the table."""
    if status not in TRANSITIONS[transfer.status]:
        raise IllegalTransition(f"{transfer.id}: {transfer.status} -> {status}")
    return replace(transfer, status=status, version=transfer.version + 1, failure=failure, needs_person=None)


def check_change(before: Transfer, after: Transfer) -> None:
    """Checks the next record of a transfer against the one on record; every store does before it records a change.

    Raises `IllegalTransition` for a change of status that the table does not allow, and for any change of a final
    transfer. A version that is not the next one, or a new value in a field that never changes, fails an assertion.
    """
    if (before.status, after.status) not in RECORDABLE:
        raise IllegalTransition(f"{after.id}: {before.status} -> {after.status}")
    assert after.version == before.version + (after.status is not before.status), f"{after.id}: a wrong version"
    fixed = (before.owner, before.key, before.source, before.target, before.amount, before.memo, before.created_at)
    same = (after.owner, after.key, after.source, after.target, after.amount, after.memo, after.created_at)
    assert same == fixed, f"{after.id}: a field that never changes was changed"


def with_leg(transfer: Transfer, leg: Leg) -> Transfer:
    """Returns the transfer with one leg replaced by its new state."""
    return replace(transfer, legs=tuple(leg if old.side is leg.side else old for old in transfer.legs))


def command_of(transfer: Transfer, leg: Leg, action: Action) -> Command:
    """Returns the command to a core for one leg of the transfer."""
    return Command(
        transfer_id=transfer.id,
        core=leg.core,
        side=leg.side,
        action=action,
        asset=transfer.source.asset,
        amount=transfer.amount,
        debit=transfer.source if leg.side is not Side.TARGET else None,
        credit=transfer.target if leg.side is not Side.SOURCE else None,
    )


def next_step(transfer: Transfer, facts: Facts) -> Step:
    """Decides what to do next with a transfer, from the record and the facts; nothing else decides this.

    The decision POST settles the hold even while a leg is only asked, but never against a core's refusal: a leg that
    was refused, cancelled or reversed unwinds the transfer whatever was decided.
    """
    match transfer.status:
        case Status.SUCCESS | Status.FAILED:
            return Finished()
        case Status.REQUESTING:
            return _while_requesting(transfer, facts)
        case Status.PENDING:
            return _while_pending(transfer, facts)
        case _:
            assert_never(transfer.status)


def _while_requesting(transfer: Transfer, facts: Facts) -> Step:
    if transfer.needs_person is not None and transfer.decision is None:
        return Wait()
    match facts.hold:
        case Hold.UNKNOWN:
            return LookAtHold()
        case Hold.HELD | Hold.POSTED if transfer.decision is None:
            return Write(_ask_next(advance(transfer, Status.PENDING)))
        case Hold.HELD | Hold.POSTED | Hold.VOIDED:
            return Write(advance(transfer, Status.PENDING))
        case Hold.REFUSED:
            return Write(advance(transfer, Status.FAILED, failure=Code.INSUFFICIENT_BALANCE))
        case Hold.BURNT:
            return Write(advance(transfer, Status.FAILED, failure=_failure_of_burnt(transfer)))
        case Hold.FOREIGN if transfer.decision is Decision.VOID:
            # The id is taken for ever, so this transfer's hold can never be created and there is nothing to give back.
            return Write(advance(transfer, Status.FAILED, failure=Code.VOIDED_BY_OPERATOR))
        case Hold.FOREIGN:
            return _needs(transfer, Need.HOLD_COLLISION)
        case Hold.ABSENT | Hold.UNEXPECTED if transfer.fencing:
            return Wait() if facts.fence_unclear else FenceHold()
        case Hold.ABSENT if not facts.expired and transfer.decision is not Decision.VOID:
            return CreateHold()
        case Hold.ABSENT | Hold.UNEXPECTED:
            return Write(replace(transfer, fencing=True))
        case _:
            assert_never(facts.hold)


def _while_pending(transfer: Transfer, facts: Facts) -> Step:
    if facts.contradiction is not None:
        return _needs(transfer, facts.contradiction)
    if transfer.needs_person is not None and transfer.decision is None:
        return Wait()
    match facts.hold:
        case Hold.UNKNOWN:
            return LookAtHold()
        case Hold.POSTED:
            return _after_post(transfer, facts)
        case Hold.VOIDED:
            return _after_void(transfer, facts)
        case Hold.FOREIGN:
            return _needs(transfer, Need.HOLD_COLLISION)
        case Hold.ABSENT | Hold.REFUSED | Hold.BURNT:
            return _needs(transfer, Need.HOLD_MISSING)
        case Hold.UNEXPECTED:
            return Wait()
        case Hold.HELD:
            return _unwind(transfer, facts) if _is_unwinding(transfer) else _go_on(transfer, facts)
        case _:
            assert_never(facts.hold)


def _after_post(transfer: Transfer, facts: Facts) -> Step:
    """Finishes a transfer whose hold is posted.

    A verdict given before the post may have been lost with the process that received it, so a leg that the record has
    as asked is asked about again and not taken for a contradiction.
    """
    if transfer.decision is Decision.POST or all(leg.state is LegState.APPLIED for leg in transfer.legs):
        return Write(advance(transfer, Status.SUCCESS))
    if not _is_unwinding(transfer):
        return _ask(transfer, facts) or _needs(transfer, Need.POSTED_WITHOUT_LEGS)
    asked = next((leg for leg in transfer.legs if leg.state is LegState.ASKED), None)
    return _tell(asked, Action.CANCEL, facts) if asked else _needs(transfer, Need.POSTED_WITHOUT_LEGS)


def _after_void(transfer: Transfer, facts: Facts) -> Step:
    """Finishes a transfer whose hold is voided; asks again for verdicts that may have been lost, but applies no leg."""
    for leg in reversed(transfer.legs):
        if leg.state is LegState.ASKED:
            return _tell(leg, Action.CANCEL, facts)
        if leg.state is LegState.REVERSING:
            return _tell(leg, Action.REVERSE, facts)
    if all(leg.state in LEG_CLEAR for leg in transfer.legs) and _is_unwinding(transfer):
        return Write(advance(transfer, Status.FAILED, failure=_failure_of(transfer)))
    return _needs(transfer, Need.VOIDED_WITH_LEGS)


def _go_on(transfer: Transfer, facts: Facts) -> Step:
    if transfer.decision is not Decision.POST:
        asking = _ask(transfer, facts)
        if asking is not None:
            return asking
    if facts.post_burnt:
        return Write(replace(transfer, post_attempt=transfer.post_attempt + 1))
    return PostHold()


def _ask(transfer: Transfer, facts: Facts) -> Step | None:
    """Returns the step for the first leg that is not applied yet, or None when all are."""
    for leg in transfer.legs:
        if leg.state is LegState.NOT_ASKED:
            return Write(_ask_next(transfer))
        if leg.state is LegState.ASKED:
            return _tell(leg, Action.APPLY, facts)
    return None


def _unwind(transfer: Transfer, facts: Facts) -> Step:
    """Undoes the legs in reverse order, so that the source is reversed only once the target is known to be clear.

    After a core's refusal no process can be posting. After a decision by people one may be: it knows the last leg's
    verdict and not the decision, or the other way round. So no leg is reversed before the post is made impossible.
    """
    for leg in reversed(transfer.legs):
        match leg.state:
            case LegState.ASKED:
                return _tell(leg, Action.CANCEL, facts)
            case LegState.APPLIED if transfer.decision is not None and not facts.post_fenced:
                return FencePost()
            case LegState.APPLIED:
                return Write(with_leg(transfer, replace(leg, state=LegState.REVERSING)))
            case LegState.REVERSING:
                return _tell(leg, Action.REVERSE, facts)
            case LegState.NOT_ASKED | LegState.REFUSED | LegState.REVERSED | LegState.CANCELLED:
                continue
            case _:
                assert_never(leg.state)
    if facts.void_burnt:
        return Write(replace(transfer, void_attempt=transfer.void_attempt + 1))
    return VoidHold()


def _is_unwinding(transfer: Transfer) -> bool:
    return transfer.decision is Decision.VOID or any(leg.state in LEG_UNDONE for leg in transfer.legs)


def _failure_of_burnt(transfer: Transfer) -> Code:
    if transfer.decision is Decision.VOID:
        return Code.VOIDED_BY_OPERATOR
    return Code.EXPIRED if transfer.fencing else Code.INSUFFICIENT_BALANCE


def _failure_of(transfer: Transfer) -> Code:
    for leg in transfer.legs:
        if leg.state is LegState.REFUSED:
            return Code.INSUFFICIENT_BALANCE if leg.reason == INSUFFICIENT_BALANCE else Code.CORE_REFUSED
    return Code.VOIDED_BY_OPERATOR if transfer.decision is Decision.VOID else Code.CORE_REFUSED


def _ask_next(transfer: Transfer) -> Transfer:
    """Returns the transfer with its first leg that was not asked marked as asked, if there is one."""
    for leg in transfer.legs:
        if leg.state is LegState.NOT_ASKED:
            return with_leg(transfer, replace(leg, state=LegState.ASKED))
    return transfer


def _tell(leg: Leg, action: Action, facts: Facts) -> Step:
    return Wait() if (leg.side, action) in facts.told else Tell(leg, action)


def _needs(transfer: Transfer, need: Need) -> Step:
    return Wait() if transfer.needs_person is need else Write(replace(transfer, needs_person=need))


def heard(transfer: Transfer, verdict: Verdict) -> tuple[Transfer, Need | None]:
    """Returns the transfer after a core's verdict, and why it needs a person if the verdict makes no sense.

    A verdict that does not repeat its command correctly, or that contradicts the record, changes nothing. One that
    confirms the record changes nothing either, and no verdict changes a final transfer. The caller records the result;
    if it does not, the core can be asked again.
    """
    leg = next((leg for leg in transfer.legs if leg.side is verdict.side), None)
    if leg is None:
        return transfer, Need.CORE_CONTRADICTION
    told = command_of(transfer, leg, verdict.action)
    echoed = (verdict.transfer_id, verdict.asset, verdict.amount, verdict.debit, verdict.credit)
    if echoed != (told.transfer_id, told.asset, told.amount, told.debit, told.credit):
        return transfer, Need.CORE_CONTRADICTION
    match verdict.action, verdict.outcome, leg.state:
        case _, Outcome.MISMATCH, _:
            return transfer, Need.CORE_CONTRADICTION
        case Action.APPLY | Action.CANCEL, Outcome.APPLIED, LegState.ASKED:
            after = replace(leg, state=LegState.APPLIED)
        case Action.APPLY | Action.CANCEL, Outcome.REFUSED, LegState.ASKED:
            after = replace(leg, state=LegState.REFUSED, reason=verdict.reason)
        case Action.APPLY | Action.CANCEL, Outcome.CANCELLED, LegState.ASKED:
            after = replace(leg, state=LegState.CANCELLED)
        case Action.APPLY | Action.CANCEL, Outcome.APPLIED, LegState.APPLIED | LegState.REVERSING | LegState.REVERSED:
            return transfer, None
        case Action.APPLY | Action.CANCEL, Outcome.REFUSED, LegState.REFUSED:
            return transfer, None
        case Action.APPLY | Action.CANCEL, Outcome.CANCELLED, LegState.CANCELLED:
            return transfer, None
        case Action.REVERSE, Outcome.REVERSED, LegState.REVERSING:
            after = replace(leg, state=LegState.REVERSED)
        case Action.REVERSE, Outcome.REVERSED, LegState.REVERSED:
            return transfer, None
        case Action.REVERSE, Outcome.REFUSED, LegState.REVERSING:
            return transfer, Need.CORE_REFUSES_REVERSAL
        case _:
            return transfer, Need.CORE_CONTRADICTION
    if transfer.status not in OPEN:
        # Only the decision POST makes a transfer final while a leg is asked; a late "applied" confirms it.
        return transfer, None if after.state is LegState.APPLIED else Need.CORE_CONTRADICTION
    return with_leg(transfer, after), None
