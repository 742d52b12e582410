"""The audit chain, the same in every database.

An entry's digest is the SHA-256 of its number, the digest before it and its fields, each with its length in front. The
head of the chain (its number and digest) is stored beside it, so that cutting off the end is seen as well. Whoever can
write the database and knows this can forge all of it anew; a copy of a head kept elsewhere shows that too.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from internal_transfer.ports.operations import AuditEntry, ChainedEntry

GENESIS = "0" * 64
"""What stands as the digest before the first entry."""


def digest_of(number: int, entry: AuditEntry, previous: str) -> str:
    """The hexadecimal digest of an entry at its place in the chain."""
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
    """The entry in a row of number, time, actor, action, subject, reason, outcome, evidence, previous, digest."""
    number, at, actor, action, subject, reason, outcome, evidence, previous, digest = row
    entry = AuditEntry(
        at=at, actor=actor, action=action, subject=subject, reason=reason, outcome=outcome, evidence=evidence
    )
    return ChainedEntry(number, entry, previous, digest)


class ChainWalk:
    """A walk along the chain from its first entry; `number` and `digest` are those of the last one that holds."""

    def __init__(self) -> None:
        self.number = 0
        self.digest = GENESIS

    def first_break(self, links: Iterable[ChainedEntry]) -> int | None:
        """Goes on over the next entries; the number at which the chain breaks, or None."""
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
        """Holds the head against the walk's end; the number at which the chain breaks, or None."""
        if head == (self.number, self.digest):
            return None
        # The head says more than the chain where the end was cut off, and something else where it was itself changed.
        return self.number + 1 if head is None or head[0] > self.number else max(self.number, 1)
