"""What operators decide and what is kept about it: pins, policy, API keys, the audit chain, reports."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.account import Owner
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.bounds import reads


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
    """An entry in the chain: its number (from 1), the hash of the one before, and its own hash over both."""

    number: int
    entry: AuditEntry
    previous: str
    digest: str


class ApiKey(Struct, frozen=True, kw_only=True):
    """A key for request signatures. The secret has to be readable, since it signs; the passphrase is only hashed."""

    key: str
    secret: str
    passphrase_hash: str
    owner: Owner
    tier: str
    created_at: int
    revoked: bool = False


class Report(Struct, frozen=True):
    """A reconciliation: when, whether it was clean, and its items as JSON."""

    at: int
    clean: bool
    items: str


class Operations(Protocol):
    """All calls raise `Unavailable` when nothing was recorded and `OutcomeUnknown` when something may have been."""

    async def pin(self, values: dict[str, str]) -> dict[str, str]:
        """Pins values at first use; answers those that were pinned before with another value, as they were pinned.

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
        """Puts a policy in force together with its audit entry, and answers the entry's number.

        `policy.version` is the version that the change was based on; None where another one is in force by now.
        """
        ...

    async def append_audit(self, entry: AuditEntry) -> int:
        """Appends an entry to the chain and answers its number."""
        ...

    @reads
    async def audit(self, *, after: int, most: int) -> list[ChainedEntry]:
        """Entries by rising number above `after`."""
        ...

    @reads
    async def audit_about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects, by rising number."""
        ...

    @reads
    async def verify_audit(self) -> int | None:
        """The number of the first entry at which the chain is broken or missing, or None where all of it holds."""
        ...

    async def put_api_key(self, key: ApiKey, entry: AuditEntry) -> None:
        """Stores a new API key together with its audit entry."""
        ...

    @reads
    async def api_keys(self, keys: Sequence[str]) -> list[ApiKey | None]:
        """The API keys, in order."""
        ...

    async def save_report(self, report: Report) -> int:
        """Stores a reconciliation's report and answers its number."""
        ...

    @reads
    async def last_report(self) -> Report | None:
        """The newest report."""
        ...
