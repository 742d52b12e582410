"""The simplest correct record of transfers, in dictionaries and lists; only for comparison."""

from collections.abc import Sequence

from msgspec.structs import replace

from internal_transfer.conformance.transfer_store.transfers import LEGAL
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId, day_of
from internal_transfer.domain.transfer import IllegalTransition, Status, Transfer
from internal_transfer.ports.transfer_store import (
    Accepted,
    AcceptOutcome,
    Change,
    DailyLimitExceeded,
    Event,
    IdTaken,
    KeyTaken,
    Proposal,
)

OPEN = {Status.REQUESTING, Status.PENDING}


class StoreModel:
    """All that a store remembers."""

    def __init__(self) -> None:
        self.transfers: dict[TransferId, Transfer] = {}
        self.accept_order: list[TransferId] = []
        self.keys: dict[tuple[Owner, str], tuple[TransferId, bytes]] = {}
        self.used: dict[tuple[Owner, str, int], int] = {}
        self.events: list[Event] = []
        self.accounts: list[Account] = []

    def accept(self, each: Proposal) -> AcceptOutcome:
        """Accepts one transfer."""
        new = each.transfer
        key, use = (new.owner, new.key), (new.owner, new.source.asset, day_of(new.id))
        if key in self.keys:
            transfer_id, fingerprint = self.keys[key]
            return KeyTaken(self.transfers[transfer_id], fingerprint)
        if new.id in self.transfers:
            return IdTaken()
        if self.used.get(use, 0) + new.amount > each.daily_units:
            return DailyLimitExceeded(max(0, each.daily_units - self.used.get(use, 0)))
        self.used[use] = self.used.get(use, 0) + new.amount
        self.keys[key] = (new.id, each.fingerprint)
        self.transfers[new.id] = new
        self.accept_order.append(new.id)
        self.events.append(Event(new.id, 1, new.status, new.created_at, None))
        return Accepted()

    def record(self, change: Change) -> Transfer | None:
        """Records one change; after raising `IllegalTransition` the model is in no defined state."""
        after = change.after
        before = self.transfers.get(after.id)
        if before is None or before.revision != change.revision:
            return None
        if before.status not in OPEN or (
            after.status is not before.status and (before.status, after.status) not in LEGAL
        ):
            raise IllegalTransition
        after = self.transfers[after.id] = replace(after, revision=before.revision + 1)
        if after.status is not before.status:
            self.events.append(Event(after.id, after.version, after.status, after.updated_at, after.failure))
        if after.status is Status.FAILED:
            self.used[after.owner, after.source.asset, day_of(after.id)] -= after.amount
        return after

    def open(self) -> list[Transfer]:
        """Returns the transfers that are not final, in the order of acceptance."""
        return [each for each in self.transfers.values() if each.status in OPEN]

    def replace(self, transfers: Sequence[Transfer]) -> None:
        """Replaces transfers by newer states of them."""
        self.transfers.update({each.id: each for each in transfers})
