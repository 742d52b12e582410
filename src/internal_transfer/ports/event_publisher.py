"""How other programs learn what becomes of transfers."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.transfer import Transfer
from internal_transfer.ports.transfer_store import Event


class TransferEvent(Struct, frozen=True):
    """A change of status, with its transfer; only the fields of the transfer that never change are published."""

    event: Event
    transfer: Transfer


class EventPublisher(Protocol):
    """Publishes at least once, in order per transfer and without gaps: never version n + 1 before version n."""

    async def publish(self, events: Sequence[TransferEvent]) -> None:
        """Publishes events, and returns once they survive the loss of a machine.

        Raises `Unavailable` where none was published and `OutcomeUnknown` where some may have been. The caller then
        publishes all of them again, since readers drop each (transfer id, version) that they have seen.
        """
        ...
