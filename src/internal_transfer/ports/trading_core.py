"""The systems that own core-held balances.

A trading core promises: the *first* verdict for (transfer id, side, action) is stored in the transaction of its effect
and repeated for ever; cancelling or reversing an id it has not seen leaves a tombstone, so that the id can never be
applied later; the same id with another asset, amount, owner or direction is a `MISMATCH` without effect; verdicts
echo what they are about.

| told | seen before | verdict |
| --- | --- | --- |
| apply | nothing | applied, or refused with a reason |
| apply | a tombstone | cancelled |
| cancel | nothing | cancelled, leaving a tombstone |
| cancel | applied | applied: too late, reverse it |
| cancel | refused | refused |
| reverse | applied | reversed, unconditionally; the balance may become negative |
| reverse | nothing, or a tombstone | reversed, leaving a tombstone |
| reverse | refused | reversed: there was no effect |
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.bounds import reads


class CoreBalance(Struct, frozen=True):
    """A balance as the core that owns it reports it, in smallest units: all of it, and what is spoken for."""

    account: Account
    posted: int
    held: int


class TradingCore(Protocol):
    """All trading cores, addressed by the `core` of each command."""

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends orders; answers in order, None where the verdict will come over the event bus, or never.

        Telling again is asking: the first verdict comes back. At most one effect per (transfer id, side). Raises
        `Unavailable` when nothing was sent, `OutcomeUnknown` when some may have been.
        """
        ...

    @reads
    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All verdicts that are stored for each transfer, in the order in which they were given; no effect."""
        ...

    @reads
    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of one owner in all cores; raises `Unavailable` while they cannot be had."""
        ...

    @reads
    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """What transfers did to balances: (number, verdict of applied or reversed), rising, for reconciliation."""
        ...
