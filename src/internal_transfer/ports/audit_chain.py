"""How audit entries are chained and verified.

It stands with the port because the chain is the same in every database: whichever adapter wrote an entry, its digest
is the same.

An entry's digest is the SHA-256 of its number, the digest before it and its fields, each preceded by its length. The
head of the chain (number and digest of its last entry) is stored beside it, so that a chain that was cut short shows
as well. Someone who can write the database can still forge the whole chain; a copy of a head kept elsewhere shows that.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from internal_transfer.ports.operations import AuditEntry, ChainedEntry

GENESIS = "0" * 64
"""The digest before the first entry."""


def digest_of(number: int, entry: AuditEntry, previous: str) -> str:
    """Returns the hexadecimal digest of an entry at its place in the chain."""
    digest = sha256(b"internal-transfer audit 1")
    for part in (
        str(number),
        previous,
        str(entry.at),
        entry.actor,
        entry.action,
        entry.subject,
        entry.reason,
        entry.outcome,
        entry.evidence,
    ):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def chained(row: Sequence[Any]) -> ChainedEntry:
    """Reads an entry from a row: number, time, actor, action, subject, reason, outcome, evidence, previous, digest."""
    number, at, actor, action, subject, reason, outcome, evidence, previous, digest = row
    entry = AuditEntry(
        at=at, actor=actor, action=action, subject=subject, reason=reason, outcome=outcome, evidence=evidence
    )
    return ChainedEntry(number, entry, previous, digest)


class ChainWalk:
    """Verifies the chain from its first entry on; `number` and `digest` are those of the last good entry."""

    def __init__(self) -> None:
        self.number = 0
        self.digest = GENESIS

    def first_break(self, links: Iterable[ChainedEntry]) -> int | None:
        """Verifies the next entries; returns the number at which the chain breaks, or None."""
        for link in links:
            number = self.number + 1
            if (link.number, link.previous) != (number, self.digest):
                return number
            digest = digest_of(number, link.entry, self.digest)
            if link.digest != digest:
                return number
            self.number, self.digest = number, digest
        return None

    def break_at_end(self, head: tuple[int, str] | None) -> int | None:
        """Compares the head with the last entry; returns the number at which the chain breaks, or None."""
        if head == (self.number, self.digest):
            return None
        # A head that is gone or ahead means that the chain was cut short; any other means that the head was changed.
        return self.number + 1 if head is None or head[0] > self.number else max(self.number, 1)
