"""Acknowledgements: operators posted a transfer by breaking the glass, and put its legs right in the core by hand.

They are entries of the audit chain, from which reconciliation learns which legs to leave out.
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
    """An entry's evidence: the legs that the cores had not applied and that were put right by hand."""

    sides: tuple[Side, ...]


def acknowledged_sides(links: Sequence[ChainedEntry]) -> dict[TransferId, frozenset[Side]]:
    """Returns the legs that entries of this action acknowledge, by transfer."""
    sides: dict[TransferId, frozenset[Side]] = {}
    for link in links:
        transfer_id = TransferId(int(link.entry.subject))
        more = msgspec.json.decode(link.entry.evidence, type=Acknowledged).sides
        sides[transfer_id] = sides.get(transfer_id, frozenset()).union(more)
    return sides
