"""The record of transfers: what users asked for and read, and what the services go on from."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import NODES_MAX, TransferId
from internal_transfer.domain.leg import LegState
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.bounds import reads
from internal_transfer.ports.errors import System, Unavailable

DAILY_UNITS_MAX = 2**128 - 1
"""The largest sum of one owner's day that a store keeps; a higher limit counts as this one."""


class Event(Struct, frozen=True):
    """One change of status; `version` counts a transfer's events from 1."""

    transfer_id: TransferId
    version: int
    status: Status
    at: int
    code: Code | None


class Proposal(Struct, frozen=True):
    """A transfer to be accepted, what its key stands for, and the most that its owner may move on its day.

    Only a new transfer can be proposed: REQUESTING, never recorded, and with no leg asked.
    """

    transfer: Transfer
    fingerprint: bytes
    daily_units: int

    def __post_init__(self) -> None:
        transfer = self.transfer
        assert transfer.status is Status.REQUESTING, "only a requested transfer is accepted"
        assert transfer.version == transfer.revision == 1, "a transfer that was recorded before cannot be accepted"
        assert 0 < transfer.amount <= AMOUNT_UNITS_MAX, "the amount is out of range"
        assert transfer.source.asset == transfer.target.asset, "both accounts hold the same asset"
        for leg in transfer.legs:
            assert leg.state is LegState.NOT_ASKED, "no core is asked before the transfer is on record"


class Accepted(Struct, frozen=True):
    """The transfer is recorded as REQUESTING."""


class KeyTaken(Struct, frozen=True):
    """The owner used the key before: for this transfer, with this content. Nothing was recorded."""

    transfer: Transfer
    fingerprint: bytes


class DailyLimitExceeded(Struct, frozen=True):
    """The day's limit does not allow the amount; `remaining_units` are left. Nothing was recorded."""

    remaining_units: int


class IdTaken(Struct, frozen=True):
    """Another transfer has this id; draw another. Nothing was recorded."""


AcceptOutcome = Accepted | KeyTaken | DailyLimitExceeded | IdTaken


class Change(Struct, frozen=True):
    """The next record of a transfer; valid only while the recorded `revision` is the one given here.

    `after.revision` is ignored: the store counts. `after.version` is larger by one than the recorded one where the
    status changes, and then the event of that version is recorded with it.
    """

    revision: int
    after: Transfer


class HistoryQuery(Struct, frozen=True, kw_only=True):
    """One page of an owner's transfers, newest accepted first.

    Times are milliseconds on `created_at`: `from_ms` inclusive, `to_ms` exclusive. A direction needs an account type.
    `after` is the last `accept_number` of the page before; `until` is the highest that the walk may show.
    """

    owner: Owner
    most: int
    after: int | None = None
    until: int | None = None
    statuses: frozenset[Status] = frozenset()
    asset: str | None = None
    account_type: str | None = None
    direction: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    def __post_init__(self) -> None:
        assert self.most > 0, "a page shows at least one transfer"
        assert self.direction in {None, "in", "out"}, f"no such direction: {self.direction}"
        assert self.direction is None or self.account_type is not None, "a direction needs an account type"

    @property
    def is_filtered(self) -> bool:
        """Whether the page may skip transfers of the owner, so that a store has to bound how many rows it reads."""
        filters = (self.asset, self.account_type, self.from_ms, self.to_ms)
        return bool(self.statuses) or any(each is not None for each in filters)

    def top(self, until: int) -> int:
        """The highest accept number that this page may show, in a walk that shows numbers up to `until`."""
        return until if self.after is None else min(until, self.after - 1)


class HistoryPage(Struct, frozen=True):
    """Transfers with their accept numbers (rising in the order of commits), newest first.

    `until` is the highest accept number that was committed when the walk began. A walk that hands it back together
    with the last number it saw meets every transfer committed before its first page exactly once.
    """

    transfers: list[Transfer]
    until: int
    next_after: int | None


class OpenSummary(Struct, frozen=True):
    """How many transfers are open, and since when the oldest leg of each core has been asked without an answer.

    `by_status` names both open statuses, also with 0; `oldest_open_ms` is the smallest `created_at` in each that has
    any. `needs_person` counts by reason; cores owe those transfers nothing until persons have decided.
    """

    by_status: dict[Status, int]
    oldest_asked_ms: dict[str, int]
    oldest_open_ms: dict[Status, int]
    needs_person: dict[str, int]


class RegisteredAccount(Struct, frozen=True):
    """An account with its number in the append-only registry (from 1)."""

    number: int
    account: Account


def no_node_is_free() -> Unavailable:
    """The failure of `lease_node` while every node number is leased to another process."""
    return Unavailable(System.STORE, f"all {NODES_MAX} node numbers are leased; stop a process, or wait")


class TransferStore(Protocol):
    """All calls raise `Unavailable` when nothing was recorded and `OutcomeUnknown` when something may have been.

    Reads by id and key see everything that was accepted or recorded before in this process, and after `durable()`
    everywhere. Final records never change; events and keys are never changed or removed.
    """

    @reads
    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """What each (owner, idempotency key) stands for, in order.

        With `settled`, accepts that are about to commit are waited for and what is in doubt is settled, so a None means
        that nothing is on record, save for what is still on its way to the store. Without it a None may miss those,
        which is enough, and cheaper, where `accept` has the last word.
        """
        ...

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Records transfers; for each, in one transaction: claims the key, reserves the daily limit, inserts the
        record and its first event. Proposals of one batch see those before them.

        The key is looked at first, then the id, then the limit. A refused proposal leaves nothing behind.
        """
        ...

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Records the next state of transfers with its event; gives FAILED ones' share of the daily limit back.

        Answers the transfer as recorded (with its new revision), or None where the recorded revision was another one:
        then somebody else went on, and nothing was changed. Raises `IllegalTransition` for a change of status that
        the table does not know; nothing of the batch is recorded then.
        """
        ...

    @reads
    async def get(self, transfer_ids: Sequence[TransferId]) -> list[Transfer | None]:
        """The transfers, in order."""
        ...

    @reads
    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        """The events of each transfer, by version."""
        ...

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Takes open transfers whose `due_at` is not after `now_ms`, oldest due first, and leases them.

        A lease moves `due_at` to `now_ms + lease_ms`, so no two callers get the same transfer; it is no revision.
        """
        ...

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due, after a restart of the only process there is; answers how many."""
        ...

    @reads
    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page of an owner's transfers; the cursor does not assume that ids are in commit order."""
        ...

    @reads
    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """Transfers in a status, by rising id, from above `after`."""
        ...

    @reads
    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that were created before this time or need a person, oldest first."""
        ...

    @reads
    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """How many units of an asset the owner's transfers of that UTC day use."""
        ...

    @reads
    async def open_summary(self) -> OpenSummary:
        """What is open, for shedding and metrics."""
        ...

    @reads
    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events by rising sequence number above `after`; a reader that goes on from the last never skips one."""
        ...

    @reads
    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader of the feed has done its work; 0 for one never heard of."""
        ...

    async def move_reader(self, reader: str, position: int) -> None:
        """Notes how far a reader of the feed has come; a position that is not ahead of the noted one does nothing.

        `reader` names a use of the feed, such as the publisher to a broker, not a process, so whoever takes the work
        over goes on from there. An event may be read again after a crash, never missed.
        """
        ...

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts, the first time they are seen, and answers the numbers in order."""
        ...

    @reads
    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner that were ever used."""
        ...

    @reads
    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The way back from the ledger's `user_data_128` of an account."""
        ...

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a node number (0 to 1023) to draw ids under, or renews the holder's own.

        Raises `Unavailable` when all are leased.
        """
        ...

    @reads
    async def ledger_seen(self) -> int:
        """The largest `ledger_timestamp` on record: it must exist in the ledger, else that was restored to before."""
        ...
