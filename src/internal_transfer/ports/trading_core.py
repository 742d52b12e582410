"""The systems that own core-held balances.

A trading core promises:

- The *first* verdict for (transfer id, side, action) is stored in the transaction of its effect and repeated for ever.
- Cancelling or reversing an id that it has not seen leaves a tombstone, so that the id can never be applied later.
- The same id with another asset, amount, owner or direction is a `MISMATCH` without effect.
- A verdict repeats the fields of its command.

| command | seen before | verdict |
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
    """A balance as its core reports it, in smallest units: all of it, and the part that is held."""

    account: Account
    posted: int
    held: int


class TradingCore(Protocol):
    """All trading cores, addressed by the `core` of each command."""

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends commands; returns their verdicts in order, with None where one comes over the event bus, or never.

        Sending a command again returns its first verdict. A (transfer id, side) has at most one effect. Raises
        `Unavailable` when nothing was sent and `OutcomeUnknown` when some commands may have been.
        """
        ...

    @reads
    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All stored verdicts of each transfer, in the order in which they were given; has no effect."""
        ...

    @reads
    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of one owner in all cores; raises `Unavailable` while a core does not report them."""
        ...

    @reads
    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """What transfers did to balances, by rising number: (number, verdict) of applied and reversed legs."""
        ...
