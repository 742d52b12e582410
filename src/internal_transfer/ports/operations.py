"""The records of operation: pinned settings, policy, API keys, the audit chain and reconciliation reports."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.account import Owner
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.bounds import reads, walks


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One privileged act: who did what to what, why, on what evidence, and with what outcome.

    `subject` is a transfer id, a user, a route or a reference; `evidence` is text (JSON where it is structured).
    """

    at: int
    actor: str
    action: str
    subject: str
    reason: str
    outcome: str
    evidence: str = ""


class ChainedEntry(Struct, frozen=True):
    """An entry in the chain: its number (from 1), the digest of the entry before it, and its own digest."""

    number: int
    entry: AuditEntry
    previous: str
    digest: str


class ApiKey(Struct, frozen=True, kw_only=True):
    """A key for request signatures. The secret is stored as it is, to verify signatures; the passphrase is hashed."""

    key: str
    secret: str
    passphrase_hash: str
    owner: Owner
    tier: str
    created_at: int
    revoked: bool = False


class Report(Struct, frozen=True):
    """A reconciliation report: when it was made, whether it is clean, and its items as JSON."""

    at: int
    clean: bool
    items: str


class Operations(Protocol):
    """All calls raise `Unavailable` when nothing was recorded and `OutcomeUnknown` when something may have been."""

    async def pin(self, values: dict[str, str]) -> dict[str, str]:
        """Pins values at first use; returns those that are already pinned with another value, as they are pinned.

        If there are any, nothing new is pinned.
        """
        ...

    @reads
    async def pins(self) -> dict[str, str]:
        """All pinned values by name."""
        ...

    @reads
    async def policy(self) -> Policy:
        """The policy in force."""
        ...

    async def change_policy(self, policy: Policy, entry: AuditEntry) -> int | None:
        """Puts a policy in force together with its audit entry, and returns the entry's number.

        `policy.version` is the version that the change was based on. Where another version is in force, changes nothing
        and returns None.
        """
        ...

    async def append_audit(self, entry: AuditEntry) -> int:
        """Appends an entry to the chain and returns its number."""
        ...

    @reads
    async def audit(self, *, after: int, most: int) -> list[ChainedEntry]:
        """The entries with a number above `after`, rising."""
        ...

    @reads
    async def audit_about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects, by rising number."""
        ...

    @walks
    async def verify_audit(self) -> int | None:
        """Returns the number of the first entry that is wrong or missing, or None for a whole chain."""
        ...

    async def put_api_key(self, key: ApiKey, entry: AuditEntry) -> None:
        """Stores a new API key together with its audit entry."""
        ...

    @reads
    async def api_keys(self, keys: Sequence[str]) -> list[ApiKey | None]:
        """The API keys, in order."""
        ...

    async def save_report(self, report: Report) -> int:
        """Stores a reconciliation report and returns its number."""
        ...

    @reads
    async def last_report(self) -> Report | None:
        """The newest report."""
        ...
