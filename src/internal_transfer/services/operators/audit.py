"""What privileged acts have in common: a reason, entries in the audit chain, and an answer."""

from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Refusal, refuse_field
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.operations import AuditEntry, ChainedEntry

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
    """Writes and finds entries of the audit chain."""

    def __init__(self, ports: Ports) -> None:
        self._operations = ports.operations
        self._clock = ports.clock

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
        """Appends an entry and returns its number.

        Raises `Unavailable` or `OutcomeUnknown`; then the act must not go on.
        """
        return await self._operations.append_audit(entry)

    async def about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects; raises `Unavailable`."""
        return await self._operations.audit_about(action, subjects)
