"""The record of transfers: what users asked for, what they are shown, and what the services continue from."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

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
    """One change of status; `version` numbers a transfer's events from 1."""

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
    """The owner has used the key before, for this transfer and content. Nothing was recorded."""

    transfer: Transfer
    fingerprint: bytes


class DailyLimitExceeded(Struct, frozen=True):
    """The amount exceeds the day's limit, of which `remaining_units` are left. Nothing was recorded."""

    remaining_units: int


class IdTaken(Struct, frozen=True):
    """Another transfer has this id; draw another. Nothing was recorded."""


AcceptOutcome = Accepted | KeyTaken | DailyLimitExceeded | IdTaken


class Change(Struct, frozen=True):
    """The next record of a transfer; it is recorded only if the recorded `revision` is the one given here.

    `after.revision` is ignored, since the store counts revisions. Where the status changes, `after.version` is the
    recorded version plus one, and the event of that version is recorded in the same commit.
    """

    revision: int
    after: Transfer


class HistoryQuery(Struct, frozen=True, kw_only=True):
    """One page of an owner's transfers, newest accepted first.

    `from_ms` (inclusive) and `to_ms` (exclusive) bound `created_at`, in milliseconds. A direction (`in` or `out`) needs
    an account type. `after` is the `next_after` of the page before, `until` the one that the first page returned.
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
    """Transfers, newest accepted first; accept numbers rise in the order of commits.

    `until` is the highest accept number when the walk began, `next_after` the number to go on from, or None on the last
    page. A walk that passes both to the next query shows every transfer committed before its first page exactly once.
    """

    transfers: list[Transfer]
    until: int
    next_after: int | None


class OpenSummary(Struct, frozen=True):
    """How many transfers are open, and since when each core has owed its oldest answer.

    `by_status` has both open statuses, even at 0; `oldest_open_ms` is the smallest `created_at` in each that has any.
    `needs_person` counts by reason; no core owes those transfers an answer until people have decided.
    """

    by_status: dict[Status, int] = field(default_factory=lambda: dict.fromkeys((Status.REQUESTING, Status.PENDING), 0))
    oldest_asked_ms: dict[str, int] = field(default_factory=dict)
    oldest_open_ms: dict[Status, int] = field(default_factory=dict)
    needs_person: dict[str, int] = field(default_factory=dict)

    def count(self, status: Status, need: str | None, count: int, oldest_ms: int) -> None:
        """Counts open transfers of one status and need, of which the oldest was created at `oldest_ms`."""
        self.by_status[status] += count
        self.oldest_open_ms[status] = min(oldest_ms, self.oldest_open_ms.get(status, oldest_ms))
        if need is not None:
            self.needs_person[need] = self.needs_person.get(need, 0) + count

    def count_asked(self, core: str, since_ms: int) -> None:
        """Counts a core that has owed an answer since this time."""
        self.oldest_asked_ms[core] = min(since_ms, self.oldest_asked_ms.get(core, since_ms))


class RegisteredAccount(Struct, frozen=True):
    """An account with its number in the append-only registry, from 1."""

    number: int
    account: Account


def no_node_is_free() -> Unavailable:
    """The failure of `lease_node` while every node number is leased to another process."""
    return Unavailable(System.STORE, f"all {NODES_MAX} node numbers are leased; stop a process, or wait")


class TransferStore(Protocol):
    """All calls raise `Unavailable` when nothing was recorded and `OutcomeUnknown` when something may have been.

    Reads by id and key see everything that this process accepted or recorded before; those of other processes see it
    once it is `durable()`. Final records never change; events and keys are never changed or removed.
    """

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """The transfer that each (owner, idempotency key) stands for, in order.

        With `settled`, the store waits for accepts that are about to commit and settles those in doubt, so None means
        that nothing is on record; only a request still on its way to the store can be missed. Without it None may miss
        those accepts too, which is cheaper, and enough where `accept` follows and decides.
        """
        ...

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Accepts transfers: in one transaction for each, claims the key, reserves the daily limit, and inserts the
        record and its first event. A proposal sees those before it in the batch.

        The key is checked first, then the id, then the limit. A refused proposal leaves no trace.
        """
        ...

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Records the next state of transfers, with an event where the status changes; where that is FAILED, gives
        back the share of the daily limit.

        Returns each transfer as recorded, with its new revision, or None where the recorded revision is another one:
        then another process has changed the transfer, and this change is not made. Raises `IllegalTransition` as
        `check_change` does, and then records nothing of the batch.
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
        """Leases open transfers whose `due_at` is not after `now_ms`, the longest due first.

        A lease moves `due_at` to `now_ms + lease_ms`, so that no two callers get the same transfer; the revision stays.
        """
        ...

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due, after a restart of the only process; returns how many are open."""
        ...

    @reads
    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page of an owner's transfers; it can be short, or empty, without being the last."""
        ...

    @reads
    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """The transfers in a status with an id above `after`, by rising id."""
        ...

    @reads
    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that were created before a time or need a person, oldest first."""
        ...

    @reads
    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """Returns how many units of an asset the owner's transfers of a UTC day use of its limit."""
        ...

    @reads
    async def open_summary(self) -> OpenSummary:
        """Counts what is open, for shedding and metrics."""
        ...

    @reads
    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """The events after a sequence number, rising; a reader that continues from the last one never skips any."""
        ...

    @reads
    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader of the feed has finished its work; 0 for an unknown reader."""
        ...

    async def move_reader(self, reader: str, position: int) -> None:
        """Records up to which sequence number a reader of the feed has finished its work; it never moves back.

        `reader` names a use of the feed, such as publishing to a broker, and not a process, so that another process can
        take over from there. After a crash an event may be read again, but is never missed.
        """
        ...

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Gives each account a number when it is first seen; returns the numbers in order."""
        ...

    @reads
    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """All accounts of an owner that were ever registered."""
        ...

    @reads
    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The accounts with these numbers, which the ledger has as `user_data_128`; None for an unknown number."""
        ...

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a node number (0 to 1023) to draw ids under, or renews the holder's own.

        Raises `Unavailable` when all are leased.
        """
        ...

    @reads
    async def ledger_seen(self) -> int:
        """The largest `ledger_timestamp` on record; a ledger without it was restored to an earlier time."""
        ...
