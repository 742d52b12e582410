"""How other programs learn what becomes of transfers."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_store import Event


class TransferEvent(Struct, frozen=True):
    """A change of status, and the transfer that it is about, of which only what never changes is told."""

    event: Event
    transfer: Transfer


class EventPublisher(Protocol):
    """At least once, in order per transfer, without gaps: version n + 1 is never there before version n."""

    async def publish(self, events: Sequence[TransferEvent]) -> None:
        """Makes events available to everybody, and returns when they survive the loss of a machine.

        Raises `Unavailable` where none was published, `OutcomeUnknown` where some may have been; then publishing all
        of them again is right, since readers drop the (transfer id, version) that they have seen.
        """
        ...
