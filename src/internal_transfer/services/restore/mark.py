"""What the audit chain says about repairs after a restore: whether one is unfinished, and which timestamp counts since.

Final records are never changed, so after a repair of the ledger they still name timestamps of the ledger that was lost.
The entry that closes a repair therefore notes two timestamps: the largest that the store had seen by then, and the
newest of the repaired ledger. Until the store sees a newer one, the ledger must have the second, not the first.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from internal_transfer.ports.operations import ChainedEntry

REPAIR = "restore_check"
"""The action of the entries that begin and end a repair."""
SUBJECT = "record"
REPAIRED, UNFINISHED = "repaired", "unfinished"

ACCEPT_UNKNOWN = "restore_accept_unknown"
"""The action of the entries with which an operator leaves a transfer without a record as it is."""


class RepairEvidence(Struct, frozen=True, kw_only=True):
    """What the closing entry of a repair says; timestamps are the ledger's."""

    seen: int
    newest: int
    done: dict[str, int]
    problems: int


def is_unfinished(links: Sequence[ChainedEntry]) -> bool:
    """Tells whether the last repair did not end, or ended with problems."""
    return bool(links) and links[-1].entry.outcome != REPAIRED


def wanted_timestamp(seen: int, links: Sequence[ChainedEntry]) -> int:
    """Returns the timestamp that must exist in the ledger, or 0 if the store has not seen any yet."""
    for link in reversed(links):
        if link.entry.outcome == REPAIRED:
            evidence = msgspec.json.decode(link.entry.evidence, type=RepairEvidence)
            return seen if seen > evidence.seen else evidence.newest
    return seen
