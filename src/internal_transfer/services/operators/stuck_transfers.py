"""The desk for stuck transfers: evidence on one transfer, and acts that cannot make things worse.

No act moves money itself. It records the operator's decision in the transfer, and the driver carries it out with the
usual steps, now or after a crash: a void fences the trading cores before it gives anything back, a post settles the
hold.
"""

from enum import StrEnum
from typing import assert_never

import msgspec
from msgspec.structs import replace

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import LEG_UNDONE, Side
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.transfer import OPEN, Decision, Facts, Hold, Status, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.transfer_store import Change
from internal_transfer.services.after_failures import after_effect
from internal_transfer.services.driver import Driver, Work
from internal_transfer.services.operators.acknowledgements import ACKNOWLEDGE, Acknowledged, acknowledged_sides
from internal_transfer.services.operators.audit import DECIDED, Act, AuditTrail, check_reason
from internal_transfer.services.operators.evidence import Evidence, Examiner, confirmed, is_applied

ALONE = "not yet approved by a second person"
"""The note on every decision, since no second approver is needed yet."""

RECORDS_MAX = 5
"""How often a decision is recorded again if the record was written in between without a change of the facts."""

_DUE_AGAIN_MS = 3_000


class DeskAction(StrEnum):
    """What can be done to a stuck transfer."""

    RETRY = "retry"
    VOID = "void"
    POST = "post"


class Desk:
    """The operators' role. All calls raise `Unavailable` or `OutcomeUnknown` if a system does not answer."""

    def __init__(
        self, ports: Ports, *, examiner: Examiner, driver: Driver, audit: AuditTrail, stuck_seconds: float = 60.0
    ) -> None:
        self._store = ports.store
        self._durability = ports.durability
        self._clock = ports.clock
        self._examiner = examiner
        self._driver = driver
        self._audit = audit
        self._stuck_seconds = stuck_seconds

    async def show(self, transfer_id: TransferId) -> Evidence | None:
        """Returns all that is on record about a transfer, or None if there is no such transfer."""
        return await self._examiner.examine(transfer_id)

    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """Returns transfers in a status, by rising id above `after`."""
        found = await self._store.by_status(status, after=after, most=most)
        await self._durability.durable()
        return found

    async def stuck(self, *, most: int) -> list[Transfer]:
        """Returns open transfers that are older than they should be, or need a person; oldest first."""
        open_before_ms = self._clock.now_ms() - int(self._stuck_seconds * 1000)
        found = await self._store.stuck(open_before_ms=open_before_ms, most=most)
        await self._durability.durable()
        return found

    async def retry(
        self, transfer_id: TransferId, *, reason: str, actor: str, shown: str | None = None
    ) -> Act | Refusal:
        """Goes on with an open transfer now, even with one that needed a person.

        `shown` is the digest of the evidence that the decision rests on; if that has changed, the act is refused.
        """
        return await self._act(DeskAction.RETRY, transfer_id, reason, actor, shown=shown, break_glass=False)

    async def void(
        self, transfer_id: TransferId, *, reason: str, actor: str, shown: str | None = None
    ) -> Act | Refusal:
        """Decides that the money goes back. The cores are fenced first, and a hold not yet seen is made impossible."""
        return await self._act(DeskAction.VOID, transfer_id, reason, actor, shown=shown, break_glass=False)

    async def post(
        self, transfer_id: TransferId, *, reason: str, actor: str, shown: str | None = None, break_glass: bool = False
    ) -> Act | Refusal:
        """Decides that the transfer is done. The cores must confirm every leg, unless `break_glass` is set; then
        reconciliation lists the transfer until they do.
        """
        return await self._act(DeskAction.POST, transfer_id, reason, actor, shown=shown, break_glass=break_glass)

    async def acknowledge(self, transfer_id: TransferId, *, reason: str, actor: str) -> Act | Refusal:
        """Records that people put right, in the core itself, the legs that a post by breaking the glass left undone.

        Reconciliation then omits those legs, and lists one that the core applies after all. Nothing is moved.
        """
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        evidence = await self._examiner.examine(transfer_id)
        if evidence is None:
            return _no_transfer(transfer_id)
        links = await self._audit.about(ACKNOWLEDGE, [str(transfer_id)])
        sides = _sides_to_acknowledge(evidence, acknowledged_sides(links).get(transfer_id, frozenset()))
        if isinstance(sides, Refusal):
            return sides
        entry = self._audit.entry(
            actor=actor,
            action=ACKNOWLEDGE,
            subject=str(transfer_id),
            reason=reason,
            outcome="completed",
            evidence=msgspec.json.encode(Acknowledged(sides)).decode(),
        )
        audit_id = await self._audit.append(entry)
        with after_effect():
            await self._durability.durable()
        return Act(
            action=ACKNOWLEDGE,
            subject=str(transfer_id),
            outcome="completed",
            reason=reason,
            audit_id=audit_id,
            request_id=transfer_id,
            status=evidence.transfer.status,
        )

    async def _act(
        self,
        action: DeskAction,
        transfer_id: TransferId,
        reason: str,
        actor: str,
        *,
        shown: str | None,
        break_glass: bool,
    ) -> Act | Refusal:
        refusal = check_reason(reason)
        if refusal is not None:
            return refusal
        evidence = await self._examiner.examine(transfer_id)
        if evidence is None:
            return _no_transfer(transfer_id)
        digest = evidence.digest(action)
        if shown is not None and shown != digest:
            return _refuse("the facts have changed since they were shown; look at it again")
        decided = _decide(action, evidence, break_glass=break_glass)
        if isinstance(decided, Refusal):
            return decided
        entry = self._audit.entry(
            actor=actor,
            action=action,
            subject=str(transfer_id),
            reason=reason,
            outcome=DECIDED,
            evidence=_evidence_text(evidence, digest, break_glass=break_glass and not _is_confirmed(evidence)),
        )
        audit_id = await self._audit.append(entry)
        recorded = await self._record(action, evidence, digest, break_glass=break_glass)
        if isinstance(recorded, Refusal):
            await self._audit.append(replace(entry, at=self._clock.now_ms(), outcome="not carried out: facts changed"))
            await self._durability.durable()
            return recorded
        with after_effect():
            transfer = await self._drive(recorded)
            outcome = _outcome(action, transfer)
            await self._audit.append(replace(entry, at=self._clock.now_ms(), outcome=f"{outcome}: {transfer.status}"))
            await self._durability.durable()
        return Act(
            action=action,
            subject=str(transfer_id),
            outcome=outcome,
            reason=reason,
            audit_id=audit_id,
            request_id=transfer_id,
            status=transfer.status,
            note="" if action is DeskAction.RETRY else ALONE,
        )

    async def _record(
        self, action: DeskAction, evidence: Evidence, digest: str, *, break_glass: bool
    ) -> Transfer | Refusal:
        """Records the decision if the facts that it rests on have not changed."""
        transfer_id = evidence.transfer.id
        for _ in range(RECORDS_MAX):
            now = await self._examiner.examine(transfer_id)
            assert now is not None, "a transfer is never removed"
            if now.digest(action) != digest:
                break
            decided = _decide(action, now, break_glass=break_glass)
            assert isinstance(decided, Transfer), "the same facts allow the same act"
            at = self._clock.now_ms()
            after = replace(decided, updated_at=at, due_at=at + _DUE_AGAIN_MS)
            [recorded] = await self._store.record([Change(decided.revision, after)])
            if recorded is not None:
                return recorded
        return _refuse("the facts changed while the decision was recorded; look at it again")

    async def _drive(self, transfer: Transfer) -> Transfer:
        work = Work(transfer, Facts(expired=self._driver.is_expired(transfer)), scanned=True)
        await self._driver.drive([work])
        [now] = await self._store.get([transfer.id])
        assert now is not None, "a transfer is never removed"
        return now


def _decide(action: DeskAction, evidence: Evidence, *, break_glass: bool) -> Transfer | Refusal:
    """Returns the transfer with the decision in it, or why the evidence does not allow it."""
    transfer = evidence.transfer
    if transfer.status not in OPEN:
        return _refuse(f"the transfer is {transfer.status}, which is final")
    match action:
        case DeskAction.RETRY:
            return replace(transfer, needs_person=None, attempts=0)
        case DeskAction.VOID:
            return _decide_void(evidence)
        case DeskAction.POST:
            return _decide_post(evidence, break_glass=break_glass)
        case _:
            assert_never(action)


def _decide_void(evidence: Evidence) -> Transfer | Refusal:
    transfer, hold = evidence.transfer, evidence.hold
    if transfer.decision is Decision.POST:
        return _refuse("an operator has already decided to post it")
    if transfer.status is Status.REQUESTING:
        return replace(transfer, decision=Decision.VOID, needs_person=None, fencing=True)
    refusal = _check_hold(hold, frozenset({Hold.HELD, Hold.VOIDED}), "voided")
    if refusal is not None:
        return refusal
    return replace(transfer, decision=Decision.VOID, needs_person=None)


def _decide_post(evidence: Evidence, *, break_glass: bool) -> Transfer | Refusal:
    transfer, hold = evidence.transfer, evidence.hold
    if transfer.status is Status.REQUESTING:
        return _refuse("its hold is not on record, so there is nothing to post")
    if transfer.decision is Decision.VOID and not (break_glass and transfer.needs_person is not None):
        # A void that cannot be finished because a core contradicts it is the one decision that may be reversed.
        return _refuse("an operator has already decided to void it")
    if any(leg.state in LEG_UNDONE for leg in transfer.legs):
        return _refuse("a trading core has refused or undone a leg, so the money goes back")
    refusal = _check_hold(hold, frozenset({Hold.HELD, Hold.POSTED}), "posted")
    if refusal is not None:
        return refusal
    if _is_confirmed(evidence):
        after, _ = confirmed(transfer, evidence.verdicts or ())
        return replace(after, decision=Decision.POST, needs_person=None)
    if not break_glass:
        return _refuse("a trading core has not confirmed every leg; only --break-glass posts without that")
    return replace(transfer, decision=Decision.POST, needs_person=None)


def _sides_to_acknowledge(evidence: Evidence, already: frozenset[Side]) -> tuple[Side, ...] | Refusal:
    """Returns the legs that the cores have not applied and that nobody has acknowledged yet."""
    transfer, verdicts = evidence.transfer, evidence.verdicts
    if transfer.status is not Status.SUCCESS or transfer.decision is not Decision.POST:
        return _refuse("it was not posted by breaking the glass, so there is nothing to acknowledge")
    if verdicts is None:
        return Refusal(Code.CORE_UNAVAILABLE, "the core does not answer, and nothing is acknowledged without it")
    missing = [leg.side for leg in transfer.legs if not is_applied(leg.side, verdicts)]
    if not missing:
        return _refuse("the cores have applied every leg, so there is nothing to acknowledge")
    sides = tuple(side for side in missing if side not in already)
    return sides or _refuse("it has been acknowledged already")


def _check_hold(hold: Hold, allowed: frozenset[Hold], act: str) -> Refusal | None:
    if hold is Hold.UNKNOWN:
        return Refusal(Code.LEDGER_UNAVAILABLE, "the ledger does not answer, and nothing is decided without it")
    if hold not in allowed:
        return _refuse(f"its hold is {hold} in the ledger, so it cannot be {act}")
    return None


def _is_confirmed(evidence: Evidence) -> bool:
    return evidence.verdicts is not None and confirmed(evidence.transfer, evidence.verdicts)[1]


def _outcome(action: DeskAction, transfer: Transfer) -> str:
    if transfer.status in OPEN:
        return "started"
    wanted = {DeskAction.VOID: Status.FAILED, DeskAction.POST: Status.SUCCESS}.get(action, transfer.status)
    return "completed" if transfer.status is wanted else "overtaken"


def _evidence_text(evidence: Evidence, digest: str, *, break_glass: bool) -> str:
    """Returns what the decision rests on, for the audit chain."""
    transfer = evidence.transfer
    return msgspec.json.encode(
        {
            "digest": digest,
            "status": transfer.status,
            "version": transfer.version,
            "needs_person": transfer.needs_person,
            "hold": evidence.hold,
            "legs": [[leg.side, leg.core, leg.state] for leg in transfer.legs],
            "verdicts": None
            if evidence.verdicts is None
            else [[verdict.side, verdict.action, verdict.outcome, verdict.reason] for verdict in evidence.verdicts],
            "break_glass": break_glass,
        }
    ).decode()


def _no_transfer(transfer_id: TransferId) -> Refusal:
    return Refusal(Code.TRANSFER_NOT_FOUND, f"there is no transfer {transfer_id}")


def _refuse(message: str) -> Refusal:
    return Refusal(Code.INVALID_STATE_TRANSITION, message)
