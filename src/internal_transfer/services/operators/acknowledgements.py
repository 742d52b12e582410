"""What operators acknowledged: legs of transfers posted by breaking the glass, put right in the core by hand.

They are entries of the audit chain; reconciliation reads there which legs are no news any more.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Side
from internal_transfer.ports.operations import ChainedEntry

ACKNOWLEDGE = "acknowledge"
"""The action of the entries; their subject is the transfer's id."""


class Acknowledged(Struct, frozen=True):
    """An entry's evidence: the legs that the cores did not have as applied, and that were put right by hand."""

    sides: tuple[Side, ...]


def acknowledged_sides(links: Sequence[ChainedEntry]) -> dict[TransferId, frozenset[Side]]:
    """The legs that entries of this action acknowledge, by transfer."""
    sides: dict[TransferId, frozenset[Side]] = {}
    for link in links:
        transfer_id = TransferId(int(link.entry.subject))
        more = msgspec.json.decode(link.entry.evidence, type=Acknowledged).sides
        sides[transfer_id] = sides.get(transfer_id, frozenset()).union(more)
    return sides
