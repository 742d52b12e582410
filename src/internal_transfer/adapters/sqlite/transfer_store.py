"""The embedded transfer store: SQLite, in the database that the embedded adapters share."""

from collections.abc import Sequence
from importlib.resources import files

import apsw
from msgspec.structs import replace

from internal_transfer.adapters.sqlite import transfer_statements as sql
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.transfer_memory import TransferMemory, Use
from internal_transfer.adapters.sqlite.transfer_rows import Row, transfer_of
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import NODES_MAX, TransferId, day_of
from internal_transfer.domain.transfer import IllegalTransition, Status, Transfer, check_change
from internal_transfer.ports.transfer_fields import STATUS, read_event
from internal_transfer.ports.transfer_store import (
    DAILY_UNITS_MAX,
    Accepted,
    AcceptOutcome,
    Change,
    DailyLimitExceeded,
    Event,
    HistoryPage,
    HistoryQuery,
    IdTaken,
    KeyTaken,
    OpenSummary,
    Proposal,
    RegisteredAccount,
    no_node_is_free,
)

MIGRATIONS = (files(__package__).joinpath("transfer_store.sql").read_text(encoding="utf-8"), sql.CREATE_FEED_READER)
"""Step n leads to version n of the tables; released steps never change."""

HISTORY_SCAN_MAX = 5_000
"""The most rows that one filtered page reads, since the loop stands still meanwhile; at this bound a page is short."""

_ACCEPTED = Accepted()
_ID_TAKEN = IdTaken()


class SqliteTransferStore:
    """Implements `TransferStore`; one per database, since it keeps rows in memory until the turn ends.

    No result may leave the process before `Database.durable()` has returned.
    """

    def __init__(self, database: Database) -> None:
        database.migrate("transfer_store", MIGRATIONS)
        self._database = database
        self._memory = TransferMemory()
        database.before_commit(self._before_commit)
        database.after_rollback(self._memory.drop)

    def _before_commit(self) -> None:
        self._memory.end(self._database.connection)

    def _written(self, connection: apsw.Connection) -> TransferMemory:
        """Writes what is still in memory, for a read through SQL; returns the memory."""
        self._memory.prepare(connection)
        self._memory.write(connection)
        return self._memory

    async def by_keys(
        self,
        keys: Sequence[tuple[Owner, str]],
        *,
        settled: bool = True,  # noqa: ARG002 - every accept is visible at once.
    ) -> list[KeyTaken | None]:
        """Looks keys up, in memory first; see the port."""
        with self._database.call() as connection:
            memory = self._memory
            memory.learn_claims(connection, keys)
            claims = [memory.claims[key] for key in keys]
            memory.learn(connection, [claim[0] for claim in claims if claim is not None])
            return [None if claim is None else KeyTaken(memory.known[claim[0]], claim[1]) for claim in claims]

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Accepts transfers in memory, to be written at the end of the turn; see the port."""
        keys: list[tuple[Owner, str]] = []
        uses: list[Use] = []
        for proposal in proposals:
            transfer = proposal.transfer
            keys.append((transfer.owner, transfer.key))
            uses.append((transfer.owner, transfer.source.asset, day_of(transfer.id)))
        outcomes: list[AcceptOutcome] = []
        with self._database.call() as connection:
            memory = self._memory
            memory.prepare(connection)
            memory.learn_claims(connection, keys)
            memory.learn_uses(connection, uses)
            for proposal, key, use in zip(proposals, keys, uses, strict=True):
                transfer = proposal.transfer
                claim = memory.claims[key]
                if claim is not None:
                    memory.learn(connection, (claim[0],))
                    outcomes.append(KeyTaken(memory.known[claim[0]], claim[1]))
                elif memory.is_taken(connection, transfer.id):
                    outcomes.append(_ID_TAKEN)
                elif (rest := min(proposal.daily_units, DAILY_UNITS_MAX) - memory.uses[use]) < transfer.amount:
                    outcomes.append(DailyLimitExceeded(max(0, rest)))
                else:
                    memory.accept(transfer, proposal.fingerprint, use)
                    outcomes.append(_ACCEPTED)
        return outcomes

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Changes transfers in memory, to be written at the end of the turn; see the port."""
        recorded: list[Transfer | None] = []
        illegal: IllegalTransition | None = None
        with self._database.call() as connection:
            memory = self._memory
            memory.prepare(connection)
            memory.learn(connection, [change.after.id for change in changes])
            latest: dict[TransferId, Transfer] = {}
            steps: list[tuple[Transfer, Transfer]] = []
            for change in changes:
                after = change.after
                before = latest.get(after.id) or memory.known.get(after.id)
                if before is None or before.revision != change.revision:
                    recorded.append(None)
                    continue
                try:
                    check_change(before, after)
                except IllegalTransition as error:
                    illegal = error
                    break
                after = replace(after, revision=before.revision + 1)
                latest[after.id] = after
                steps.append((before, after))
                recorded.append(after)
            if illegal is None:
                for before, after in steps:
                    memory.change(connection, before, after)
        if illegal is not None:
            # Raised outside the call, so that the turn, which holds the work of others, is not taken back.
            raise illegal
        return recorded

    async def get(self, transfer_ids: Sequence[TransferId]) -> list[Transfer | None]:
        """The transfers, from memory first; see the port."""
        with self._database.call() as connection:
            self._memory.learn(connection, transfer_ids)
            return [self._memory.known.get(transfer_id) for transfer_id in transfer_ids]

    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        """The events of each transfer, by version."""
        events: list[list[Event]] = [[] for _ in transfer_ids]
        with self._database.call() as connection:
            self._written(connection)
            for row in connection.executemany(sql.SELECT_EVENTS, list(enumerate(transfer_ids))):
                events[row[5]].append(read_event(row))
        return events

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Leases due transfers; see the port."""
        due_at = now_ms + lease_ms
        with self._database.call() as connection:
            memory = self._written(connection)
            rows = _select(connection, sql.SELECT_DUE, (now_ms, most))
            leased = [replace(transfer_of(row), due_at=due_at) for row in rows]
            connection.executemany(sql.LEASE_DUE, [(due_at, transfer.id) for transfer in leased])
            memory.known.update({transfer.id: transfer for transfer in leased})
        return leased

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due; returns how many are open."""
        with self._database.call() as connection:
            memory = self._written(connection)
            connection.execute(sql.MAKE_DUE, (now_ms,))
            memory.known.clear()
            [(count,)] = _select(connection, sql.COUNT_OPEN)
            return int(count)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page; see the port.

        A filtered page reads at most `HISTORY_SCAN_MAX` rows, so it can be short, or empty, without being the last.
        """
        with self._database.call() as connection:
            memory = self._written(connection)
            until = memory.last_sequence if query.until is None else query.until
            top = query.top(until)
            floor = 0
            if query.is_filtered:
                for row in _select(connection, sql.SELECT_FLOOR, (query.owner, top, HISTORY_SCAN_MAX - 1)):
                    floor = row[0]
            rows = _select(
                connection,
                sql.SELECT_HISTORY,
                (
                    query.owner,
                    floor,
                    top,
                    ",".join(query.statuses),
                    query.asset,
                    query.account_type,
                    query.direction,
                    query.from_ms,
                    query.to_ms,
                    query.most + 1,
                ),
            )
        next_after = floor or None
        if len(rows) > query.most:
            del rows[query.most :]
            next_after = rows[-1][-1]
        return HistoryPage([transfer_of(row) for row in rows], until, next_after)

    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """Transfers in a status, by rising id; see the port."""
        statement = sql.SELECT_SUCCESS if status is Status.SUCCESS else sql.SELECT_BY_STATUS
        with self._database.call() as connection:
            self._written(connection)
            rows = _select(connection, statement, (status, after or 0, most))
        return [transfer_of(row) for row in rows]

    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that are old or need a person; reads through all open ones."""
        with self._database.call() as connection:
            self._written(connection)
            rows = _select(connection, sql.SELECT_STUCK, (open_before_ms, most))
        return [transfer_of(row) for row in rows]

    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """The units that one owner uses of one day's limit."""
        use = (owner, asset, day)
        with self._database.call() as connection:
            self._memory.learn_uses(connection, (use,))
            return self._memory.uses[use]

    async def open_summary(self) -> OpenSummary:
        """Counts what is open; reads through the indexes of all open transfers, so call it seldom."""
        summary = OpenSummary()
        with self._database.call() as connection:
            self._written(connection)
            for status, need, count, oldest in _select(connection, sql.SUMMARISE_OPEN):
                summary.count(STATUS[status], need, count, oldest)
            for core, since in _select(connection, sql.SUMMARISE_ASKED):
                summary.count_asked(core, since)
        return summary

    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events by rising sequence number, which is the order of their commits."""
        with self._database.call() as connection:
            self._written(connection)
            rows = _select(connection, sql.SELECT_FEED, (after, most))
        return [(row[5], read_event(row)) for row in rows]

    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader has read; see the port."""
        with self._database.call() as connection:
            rows = _select(connection, sql.SELECT_READER, (reader,))
        return int(rows[0][0]) if rows else 0

    async def move_reader(self, reader: str, position: int) -> None:
        """Moves a reader forward, never back; see the port."""
        with self._database.call() as connection:
            connection.execute(sql.MOVE_READER, (reader, position))

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts, without gaps."""
        with self._database.call() as connection:
            bindings = [(number, each.owner, each.type, each.asset) for number, each in enumerate(accounts)]
            numbers = {accounts[place]: n for place, n in connection.executemany(sql.SELECT_REGISTERED, bindings)}
            for account in accounts:
                if account not in numbers:
                    connection.execute(sql.REGISTER, (account.owner, account.type, account.asset))
                    numbers[account] = connection.last_insert_rowid()
        return [RegisteredAccount(numbers[account], account) for account in accounts]

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner, by number."""
        with self._database.call() as connection:
            rows = _select(connection, sql.SELECT_OWNER_REGISTERED, (owner,))
        return [RegisteredAccount(number, Account(owner, kind, asset)) for number, kind, asset in rows]

    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The accounts of some numbers, in the order asked."""
        with self._database.call() as connection:
            rows = connection.executemany(sql.SELECT_NUMBER, [(number,) for number in numbers])
            accounts = {number: Account(owner, kind, asset) for number, owner, kind, asset in rows}
        return [accounts.get(number) for number in numbers]

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a node: the holder's own, else one never used, else the one whose lease ended longest ago."""
        node: int | None
        with self._database.call() as connection:
            ((node,),) = connection.execute(sql.SELECT_NODE, (holder, NODES_MAX, now_ms))
            if node is not None:
                connection.execute(sql.LEASE_NODE, (node, holder, now_ms + lease_ms))
        if node is None:
            raise no_node_is_free()
        return node

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp, from memory."""
        with self._database.call() as connection:
            self._memory.prepare(connection)
            return self._memory.ledger_seen


def _select(connection: apsw.Connection, statement: str, bindings: Row = ()) -> list[Row]:
    return connection.execute(statement, bindings).fetchall()
