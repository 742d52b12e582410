"""What all privileged acts have: a reason, entries in the audit chain, and a result."""

from collections.abc import Sequence

from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.refusal import Refusal, refuse_field
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.operations import AuditEntry, ChainedEntry

REASON_CHARACTERS_MAX = 500
DECIDED = "decided"
"""The outcome in the entry that is written before the act; a second entry after it says how the act ended."""


class Act(Struct, frozen=True, kw_only=True):
    """What a privileged act did. `audit_id` is the number of the entry that names its evidence.

    `outcome` is one word. `request_id` and `status` are those of its transfer, if it has one; `note` is for people.
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
    """Refuses a reason that is empty, too long, or has control characters, which would break a list of entries."""
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
        """Returns an entry with the present time."""
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

        Raises `Unavailable` or `OutcomeUnknown`; the act must not go on then.
        """
        return await self._operations.append_audit(entry)

    async def about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """Returns all entries of one action about any of these subjects; raises `Unavailable`."""
        return await self._operations.audit_about(action, subjects)
