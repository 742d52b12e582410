"""The embedded transfer store: SQLite, in the database that the embedded adapters share."""

from collections.abc import Sequence
from importlib.resources import files

import apsw
from msgspec.structs import replace

from internal_transfer.adapters.sqlite import transfer_statements as sql
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.transfer_memory import Turn, Use
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
"""How many rows one filtered page looks at. The loop stands still meanwhile, so a page may come out short instead."""

_ACCEPTED = Accepted()
_ID_TAKEN = IdTaken()


class SqliteTransferStore:
    """Implements `TransferStore`; one per database, since it holds back what the turn has not written yet.

    Nothing it answers may leave the process before `Database.durable()` has returned.
    """

    def __init__(self, database: Database) -> None:
        database.migrate("transfer_store", MIGRATIONS)
        self._database = database
        self._turn = Turn()
        database.before_commit(self._before_commit)
        database.after_rollback(self._turn.drop)

    def _before_commit(self) -> None:
        self._turn.end(self._database.connection)

    def _written(self, connection: apsw.Connection) -> Turn:
        """The turn, with all that it holds back written, for a read through SQL."""
        self._turn.prepare(connection)
        self._turn.write(connection)
        return self._turn

    async def by_keys(
        self,
        keys: Sequence[tuple[Owner, str]],
        *,
        settled: bool = True,  # noqa: ARG002 - a commit is seen by everybody at once.
    ) -> list[KeyTaken | None]:
        """Looks keys up, those of the turn in memory; see the port."""
        with self._database.call() as connection:
            turn = self._turn
            turn.learn_claims(connection, keys)
            claims = [turn.claims[key] for key in keys]
            turn.learn(connection, [claim[0] for claim in claims if claim is not None])
            return [None if claim is None else KeyTaken(turn.known[claim[0]], claim[1]) for claim in claims]

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Notes what is accepted for the end of the turn; see the port."""
        keys: list[tuple[Owner, str]] = []
        uses: list[Use] = []
        for proposal in proposals:
            transfer = proposal.transfer
            keys.append((transfer.owner, transfer.key))
            uses.append((transfer.owner, transfer.source.asset, day_of(transfer.id)))
        outcomes: list[AcceptOutcome] = []
        with self._database.call() as connection:
            turn = self._turn
            turn.prepare(connection)
            turn.learn_claims(connection, keys)
            turn.learn_uses(connection, uses)
            for proposal, key, use in zip(proposals, keys, uses, strict=True):
                transfer = proposal.transfer
                claim = turn.claims[key]
                if claim is not None:
                    turn.learn(connection, (claim[0],))
                    outcomes.append(KeyTaken(turn.known[claim[0]], claim[1]))
                elif turn.is_taken(connection, transfer.id):
                    outcomes.append(_ID_TAKEN)
                elif (rest := min(proposal.daily_units, DAILY_UNITS_MAX) - turn.uses[use]) < transfer.amount:
                    outcomes.append(DailyLimitExceeded(max(0, rest)))
                else:
                    turn.accept(transfer, proposal.fingerprint, use)
                    outcomes.append(_ACCEPTED)
        return outcomes

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Notes what changes for the end of the turn; see the port."""
        recorded: list[Transfer | None] = []
        illegal: IllegalTransition | None = None
        with self._database.call() as connection:
            turn = self._turn
            turn.prepare(connection)
            turn.learn(connection, [change.after.id for change in changes])
            latest: dict[TransferId, Transfer] = {}
            steps: list[tuple[Transfer, Transfer]] = []
            for change in changes:
                after = change.after
                before = latest.get(after.id) or turn.known.get(after.id)
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
                    turn.change(connection, before, after)
        if illegal is not None:
            # Raised out here, so that the rest of the turn, which is others' work, is not taken back.
            raise illegal
        return recorded

    async def get(self, transfer_ids: Sequence[TransferId]) -> list[Transfer | None]:
        """The transfers, those of the turn from memory; see the port."""
        with self._database.call() as connection:
            self._turn.learn(connection, transfer_ids)
            return [self._turn.known.get(transfer_id) for transfer_id in transfer_ids]

    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        """The events of each transfer, by version."""
        events: list[list[Event]] = [[] for _ in transfer_ids]
        with self._database.call() as connection:
            self._written(connection)
            for row in connection.executemany(sql.SELECT_EVENTS, list(enumerate(transfer_ids))):
                events[row[5]].append(read_event(row))
        return events

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Takes due transfers and puts them off by the lease; see the port."""
        due_at = now_ms + lease_ms
        with self._database.call() as connection:
            turn = self._written(connection)
            rows = _select(connection, sql.SELECT_DUE, (now_ms, most))
            leased = [replace(transfer_of(row), due_at=due_at) for row in rows]
            connection.executemany(sql.LEASE_DUE, [(due_at, transfer.id) for transfer in leased])
            turn.known.update({transfer.id: transfer for transfer in leased})
        return leased

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due; answers how many are open."""
        with self._database.call() as connection:
            turn = self._written(connection)
            connection.execute(sql.MAKE_DUE, (now_ms,))
            turn.known.clear()
            [(count,)] = _select(connection, sql.COUNT_OPEN)
            return int(count)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page; see the port.

        A filtered page looks at `HISTORY_SCAN_MAX` rows at most, so it may be short, or empty, and not be the last.
        """
        with self._database.call() as connection:
            turn = self._written(connection)
            until = turn.last_sequence if query.until is None else query.until
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
        """Open transfers that are old or need a person; walks through all that are open."""
        with self._database.call() as connection:
            self._written(connection)
            rows = _select(connection, sql.SELECT_STUCK, (open_before_ms, most))
        return [transfer_of(row) for row in rows]

    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """The sum of one owner's day."""
        use = (owner, asset, day)
        with self._database.call() as connection:
            self._turn.learn_uses(connection, (use,))
            return self._turn.uses[use]

    async def open_summary(self) -> OpenSummary:
        """What is open; walks through the indexes of all that is, so ask it seldom."""
        by_status = dict.fromkeys((Status.REQUESTING, Status.PENDING), 0)
        oldest_open: dict[Status, int] = {}
        needs_person: dict[str, int] = {}
        with self._database.call() as connection:
            self._written(connection)
            for stored, need, count, oldest in _select(connection, sql.SUMMARISE_OPEN):
                status = STATUS[stored]
                by_status[status] += count
                oldest_open[status] = min(oldest, oldest_open.get(status, oldest))
                if need is not None:
                    needs_person[need] = needs_person.get(need, 0) + count
            oldest_asked = {row[0]: row[1] for row in _select(connection, sql.SUMMARISE_ASKED)}
        return OpenSummary(by_status, oldest_asked, oldest_open, needs_person)

    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events by rising sequence number; they are numbered in the order of commits."""
        with self._database.call() as connection:
            self._written(connection)
            rows = _select(connection, sql.SELECT_FEED, (after, most))
        return [(row[5], read_event(row)) for row in rows]

    async def reader_position(self, reader: str) -> int:
        """How far a reader of the feed has come; see the port."""
        with self._database.call() as connection:
            rows = _select(connection, sql.SELECT_READER, (reader,))
        return int(rows[0][0]) if rows else 0

    async def move_reader(self, reader: str, position: int) -> None:
        """Notes how far a reader of the feed has come, never back; see the port."""
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
        """Leases a worker id: the holder's own, else one never used, else the one that ended longest ago."""
        worker: int | None
        with self._database.call() as connection:
            ((worker,),) = connection.execute(sql.SELECT_WORKER, (holder, NODES_MAX, now_ms))
            if worker is not None:
                connection.execute(sql.LEASE_WORKER, (worker, holder, now_ms + lease_ms))
        if worker is None:
            raise no_node_is_free()
        return worker

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp, from memory."""
        with self._database.call() as connection:
            self._turn.prepare(connection)
            return self._turn.ledger_seen


def _select(connection: apsw.Connection, statement: str, bindings: Row = ()) -> list[Row]:
    return connection.execute(statement, bindings).fetchall()
