"""What privileged acts have in common: a reason, entries in the audit chain, and an answer."""

from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Refusal, refuse_field
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.operations import AuditEntry, ChainedEntry, Operations
from internal_transfer.services.deadline import deadline

REASON_CHARACTERS_MAX = 500
DECIDED = "decided"
"""The outcome of an entry that is written before the act; the entry after it says what became of it."""


class Act(Struct, frozen=True, kw_only=True):
    """What a privileged act did. `audit_id` numbers the entry that names its evidence.

    `outcome` is one word. `request_id` and `status` are of the transfer that it was about; `note` is for people.
    """

    action: str
    subject: str
    outcome: str
    reason: str
    audit_id: int
    request_id: TransferId | None = None
    status: Status | None = None
    note: str = ""


def check_reason(reason: str) -> Refusal | None:
    """Refuses a reason that says nothing, is too long, or would break a list of entries apart."""
    if not reason.strip():
        return refuse_field("reason", "is required: say why")
    if len(reason) > REASON_CHARACTERS_MAX:
        return refuse_field("reason", f"is longer than {REASON_CHARACTERS_MAX} characters")
    if not reason.isprintable():
        return refuse_field("reason", "contains control characters")
    return None


class AuditTrail:
    """Writes and finds entries of the audit chain; `call_seconds` bounds each call."""

    def __init__(self, *, operations: Operations, clock: Clock, call_seconds: float = 10.0) -> None:
        self._operations = operations
        self._clock = clock
        self._call_seconds = call_seconds

    def entry(
        self, *, actor: str, action: str, subject: str, reason: str, outcome: str, evidence: str = ""
    ) -> AuditEntry:
        """An entry of this moment."""
        return AuditEntry(
            at=self._clock.now_ms(),
            actor=actor,
            action=action,
            subject=subject,
            reason=reason,
            outcome=outcome,
            evidence=evidence,
        )

    async def append(self, entry: AuditEntry) -> int:
        """Appends an entry and answers its number; raises `Unavailable` or `OutcomeUnknown`, and then nothing more
        may be done.
        """
        async with deadline(self._call_seconds, OutcomeUnknown(System.OPERATIONS, "the audit chain does not answer")):
            return await self._operations.append_audit(entry)

    async def about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects; raises `Unavailable`."""
        async with deadline(self._call_seconds, Unavailable(System.OPERATIONS, "the audit chain does not answer")):
            return await self._operations.audit_about(action, subjects)
