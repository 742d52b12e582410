"""What the audit chain says about repairs after a restore: whether one is unfinished, and which timestamp counts since.

Final records are never changed, so after a repair of the ledger they still name timestamps of the ledger that was lost.
The entry that closes a repair therefore notes two timestamps: the largest that the store had seen by then, and the
newest of the repaired ledger. Until the store sees a newer one, the ledger must have the second, not the first.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.operations import ChainedEntry
from internal_transfer.ports.transfer_store import TransferStore

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


async def lost_timestamp(store: TransferStore, ledger: Ledger, links: Sequence[ChainedEntry]) -> int:
    """Returns the timestamp that the ledger must have and lacks, since it is older than the store; 0 if none."""
    wanted = await store.ledger_seen()
    repaired = next((link for link in reversed(links) if link.entry.outcome == REPAIRED), None)
    if repaired is not None:
        evidence = msgspec.json.decode(repaired.entry.evidence, type=RepairEvidence)
        wanted = wanted if wanted > evidence.seen else evidence.newest
    rows = await ledger.transfers_after(wanted - 1, 1) if wanted else []
    return 0 if not wanted or (rows and rows[0].timestamp == wanted) else wanted
