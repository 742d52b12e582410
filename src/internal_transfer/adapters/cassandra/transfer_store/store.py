"""The transfer store on Apache Cassandra or ScyllaDB.

A transfer's partition is the truth about it. Everything else (the agenda of what is due, the feed's markers, history,
lists by status) is a hint: it is written before the change that it points at, and every reader checks it against the
truth. The scan finishes what a process that stopped has left unfinished. `claims` explains how three conditional
writes make an accept.
"""

from collections.abc import Sequence
from importlib.resources import files

from internal_transfer.adapters.cassandra.migrations import migrate
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.agenda import DUE, Agenda
from internal_transfer.adapters.cassandra.transfer_store.claims import Claims
from internal_transfer.adapters.cassandra.transfer_store.feed import Feed
from internal_transfer.adapters.cassandra.transfer_store.history import History
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits
from internal_transfer.adapters.cassandra.transfer_store.lists import Lists
from internal_transfer.adapters.cassandra.transfer_store.nodes import lease_node
from internal_transfer.adapters.cassandra.transfer_store.recorder import Recorder
from internal_transfer.adapters.cassandra.transfer_store.registry import Registry
from internal_transfer.adapters.cassandra.transfer_store.scan import Scan
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.transfer_fields import read_event
from internal_transfer.ports.transfer_store import (
    AcceptOutcome,
    Change,
    Event,
    HistoryPage,
    HistoryQuery,
    KeyTaken,
    OpenSummary,
    Proposal,
    RegisteredAccount,
)

MIGRATIONS = (files(__package__).joinpath("tables.cql").read_text(encoding="utf-8"),)
"""Step n leads to version n of the tables; a released step never changes."""


class CassandraTransferStore:
    """Implements `TransferStore`; `open` makes it. Any number of processes may share one keyspace."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        due = Agenda(tables, DUE)
        self._feed = Feed(tables)
        self._history = History(tables)
        self._limits = Limits(tables)
        self._registry = Registry(tables)
        self._claims = Claims(tables, due=due, feed=self._feed, history=self._history, limits=self._limits)
        self._recorder = Recorder(tables, due=due, feed=self._feed, limits=self._limits)
        self._scan = Scan(tables, due=due, claims=self._claims, limits=self._limits)
        self._lists = Lists(tables, due=due)

    @classmethod
    async def open(cls, cql: Cql, *, migrating: bool = True) -> "CassandraTransferStore":
        """Prepares the statements, after it has migrated the tables, or only checked that they are up to date.

        The caller starts and closes `cql`.
        """
        await migrate(cql, "transfer_store", MIGRATIONS, changing=migrating)
        return cls(Tables(cql, await cql.prepare(cql_text.ALL)))

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """What keys stand for; see the port."""
        return await self._claims.by_keys(keys, settled=settled) if keys else []

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Accepts transfers; a proposal that repeats a key or an id of its batch waits for the first. See the port."""
        outcomes: list[AcceptOutcome] = []
        batch: list[Proposal] = []
        seen: set[object] = set()
        for proposal in proposals:
            transfer = proposal.transfer
            names = {transfer.id, (transfer.owner, transfer.key)}
            if names & seen:
                outcomes += await self._accept_some(batch, is_first=not outcomes)
                batch, seen = [], set()
            batch.append(proposal)
            seen |= names
        if batch:
            outcomes += await self._accept_some(batch, is_first=not outcomes)
        return outcomes

    async def _accept_some(self, batch: Sequence[Proposal], *, is_first: bool) -> list[AcceptOutcome]:
        try:
            return await self._claims.accept(batch)
        except Unavailable as error:
            if is_first:
                raise
            raise OutcomeUnknown(error.system, error.message) from error

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Records the next state of transfers; see the port."""
        return await self._recorder.record(changes)

    async def get(self, transfer_ids: Sequence[TransferId]) -> list[Transfer | None]:
        """The transfers, in order."""
        known = await self._tables.records(transfer_ids)
        return [known[each].transfer if each in known else None for each in transfer_ids]

    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        """The events of each transfer, by version."""
        wanted = list(dict.fromkeys(transfer_ids))
        events: dict[TransferId, list[Event]] = {each: [] for each in wanted}
        for row in sorted(await self._tables.by_ids(cql_text.SELECT_EVENTS_ONE, cql_text.SELECT_EVENTS, wanted)):
            events[row[0]].append(read_event(row))
        return [list(events[each]) for each in transfer_ids]

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Leases due transfers; finishes what stopped processes left unfinished. See the port."""
        return await self._scan.lease_due(now_ms=now_ms, lease_ms=lease_ms, most=most)

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due; returns how many are open."""
        return await self._scan.make_due(await self._lists.open(), now_ms=now_ms)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page; see the port. A filtered page can be short, or empty, without being the last."""
        return await self._history.page(query)

    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """Transfers in a status, by rising id; see the port."""
        return await self._lists.by_status(status, after=after or TransferId(0), most=most)

    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that are old or need a person; reads all open transfers."""
        return await self._lists.stuck(open_before_ms=open_before_ms, most=most)

    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """How much of an asset one owner has used on one UTC day."""
        return await self._limits.used((owner, asset, day))

    async def open_summary(self) -> OpenSummary:
        """A summary of the open transfers; reads all of them, so call it seldom."""
        return await self._lists.summary()

    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events by rising sequence number; numbers the new ones first. See the port."""
        return await self._feed.read(after, most)

    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader has read the feed; see the port."""
        return await self._feed.reader_position(reader)

    async def move_reader(self, reader: str, position: int) -> None:
        """Moves a reader's position in the feed forward, never back; see the port."""
        await self._feed.move_reader(reader, position)

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts; see the port. Numbers may have gaps."""
        return await self._registry.register(accounts)

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner, by number."""
        return await self._registry.registered(owner)

    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The account of each number, in order; None for a number that is not in use."""
        return await self._registry.by_number(numbers)

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a node number; see the port."""
        return await lease_node(self._tables, holder, now_ms=now_ms, lease_ms=lease_ms)

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp on record."""
        return await self._recorder.ledger_seen()

    async def check(self) -> list[Finding]:
        """Returns the findings for `doctor`: about the cluster, and whether the tables can be read and written."""
        findings = await self._tables.cql.check()
        if not findings[0].ok:
            return findings
        try:
            await self._feed.move_reader("doctor", self._tables.cql.clock.now_ms())
            await self._feed.reader_position("doctor")
        except OperatingFailureError as error:
            return [*findings, Finding("cql permissions", False, f"{error}; grant SELECT and MODIFY on the keyspace")]
        return [*findings, Finding("cql permissions", True, "the tables can be read and conditionally written")]
