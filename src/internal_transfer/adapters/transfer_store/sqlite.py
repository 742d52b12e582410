"""The embedded transfer store: SQLite, in the database that the embedded adapters share."""

from collections.abc import Sequence
from importlib.resources import files

import apsw
from msgspec.structs import replace

from internal_transfer.adapters.transfer_store.sqlite_rows import (
    TRANSFER_COLUMNS,
    event_of,
    status_of,
    transfer_of,
)
from internal_transfer.adapters.transfer_store.sqlite_turn import Turn, Use
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import WORKERS_MAX, TransferId, day_of
from internal_transfer.domain.transfer import OPEN, TRANSITIONS, IllegalTransition, Status, Transfer
from internal_transfer.embedded.database import Database
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.transfer_store import (
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
)

MIGRATIONS = (files(__package__).joinpath("sqlite.sql").read_text(encoding="utf-8"),)
"""Step n leads to version n of the tables; released steps never change."""

HISTORY_SCAN_MAX = 5_000
"""How many rows one filtered page looks at. The loop stands still meanwhile, so a page may come out short instead."""

# The partial indexes are named, so that a plan can never become a walk through all transfers unnoticed.
_IS_OPEN = "status IN ('REQUESTING', 'PENDING')"
_SELECT_EVENTS = (
    "SELECT transfer_id, version, status, at, code, ?1 FROM transfer_event WHERE transfer_id = ?2 ORDER BY version"
)
_SELECT_FEED = (
    "SELECT transfer_id, version, status, at, code, sequence FROM transfer_event"
    " WHERE sequence > ? ORDER BY sequence LIMIT ?"
)
_SELECT_DUE = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_due
    WHERE {_IS_OPEN} AND due_at <= ? ORDER BY due_at, id LIMIT ?
"""  # noqa: S608 - of constants, as all that follow.
_LEASE_DUE = "UPDATE transfer SET due_at = ? WHERE id = ?"
_MAKE_DUE = f"UPDATE transfer INDEXED BY transfer_due SET due_at = ?1 WHERE {_IS_OPEN} AND due_at > ?1"
_COUNT_OPEN = f"SELECT count(*) FROM transfer INDEXED BY transfer_due WHERE {_IS_OPEN}"
_SELECT_SUCCESS = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE status = ? AND id > ? ORDER BY id LIMIT ?"
_SELECT_BY_STATUS = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND status = ? AND id > ? ORDER BY id LIMIT ?
"""
_SELECT_STUCK = f"""
    SELECT {TRANSFER_COLUMNS} FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND {_IS_OPEN} AND (created_at < ? OR needs_person IS NOT NULL)
    ORDER BY created_at, id LIMIT ?
"""
_SUMMARISE_OPEN = f"""
    SELECT status, needs_person, count(*), min(created_at) FROM transfer INDEXED BY transfer_status
    WHERE status <> 'SUCCESS' AND {_IS_OPEN} GROUP BY status, needs_person
"""
_SUMMARISE_ASKED = """
    SELECT asked_core, min(asked_since) FROM transfer INDEXED BY transfer_asked
    WHERE asked_core IS NOT NULL GROUP BY asked_core
"""
_SELECT_HISTORY = f"""
    SELECT {TRANSFER_COLUMNS}, accept_number FROM transfer INDEXED BY transfer_history
    WHERE owner = ?1 AND accept_number BETWEEN ?2 AND ?3
        AND (?4 = '' OR instr(?4, status) > 0)
        AND (?5 IS NULL OR asset = ?5)
        AND (?6 IS NULL OR (?7 IS NOT 'in' AND source_type = ?6) OR (?7 IS NOT 'out' AND target_type = ?6))
        AND (?8 IS NULL OR created_at >= ?8)
        AND (?9 IS NULL OR created_at < ?9)
    ORDER BY accept_number DESC LIMIT ?10
"""
_SELECT_FLOOR = """
    SELECT accept_number FROM transfer INDEXED BY transfer_history
    WHERE owner = ? AND accept_number <= ? ORDER BY accept_number DESC LIMIT 1 OFFSET ?
"""
_SELECT_REGISTERED = "SELECT ?1, number FROM registered_account WHERE owner = ?2 AND type = ?3 AND asset = ?4"
_SELECT_OWNER_REGISTERED = "SELECT number, type, asset FROM registered_account WHERE owner = ? ORDER BY number"
_SELECT_NUMBER = "SELECT number, owner, type, asset FROM registered_account WHERE number = ?"
_REGISTER = "INSERT INTO registered_account (owner, type, asset) VALUES (?, ?, ?)"
# Worker ids that nobody ever used come first, then those whose lease ended longest ago.
_SELECT_WORKER = """
    SELECT coalesce(
        (SELECT worker FROM worker_lease WHERE holder = ?1),
        (SELECT count(*) FROM worker_lease HAVING count(*) < ?2),
        (SELECT worker FROM worker_lease WHERE until_ms <= ?3 ORDER BY until_ms, worker LIMIT 1)
    )
"""
_LEASE_WORKER = """
    INSERT INTO worker_lease (worker, holder, until_ms) VALUES (?, ?, ?)
    ON CONFLICT (worker) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
"""

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

    async def by_keys(self, keys: Sequence[tuple[Owner, str]]) -> list[KeyTaken | None]:
        with self._database.call() as connection:
            turn = self._turn
            turn.learn_claims(connection, keys)
            claims = [turn.claims[key] for key in keys]
            turn.learn(connection, [claim[0] for claim in claims if claim is not None])
            return [None if claim is None else KeyTaken(turn.known[claim[0]], claim[1]) for claim in claims]

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        keys: list[tuple[Owner, str]] = []
        uses: list[Use] = []
        for proposal in proposals:
            transfer = proposal.transfer
            assert transfer.status is Status.REQUESTING, "only a requested transfer is accepted"
            assert transfer.version == transfer.revision == 1, "an accepted transfer has no past"
            assert 0 < transfer.amount <= AMOUNT_UNITS_MAX, "the amount is out of range"
            assert transfer.source.asset == transfer.target.asset, "a transfer is of one asset"
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
                elif turn.uses[use] + transfer.amount > proposal.daily_units:
                    outcomes.append(DailyLimitExceeded(max(0, proposal.daily_units - turn.uses[use])))
                else:
                    turn.accept(transfer, proposal.fingerprint, use)
                    outcomes.append(_ACCEPTED)
        return outcomes

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
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
                illegal = _illegal(before, after)
                if illegal is not None:
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
        with self._database.call() as connection:
            self._turn.learn(connection, transfer_ids)
            return [self._turn.known.get(transfer_id) for transfer_id in transfer_ids]

    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        events: list[list[Event]] = [[] for _ in transfer_ids]
        with self._database.call() as connection:
            self._written(connection)
            for row in connection.executemany(_SELECT_EVENTS, list(enumerate(transfer_ids))):
                events[row[5]].append(event_of(row))
        return events

    async def claim_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        due_at = now_ms + lease_ms
        with self._database.call() as connection:
            turn = self._written(connection)
            rows = connection.execute(_SELECT_DUE, (now_ms, most)).fetchall()
            leased = [replace(transfer_of(row), due_at=due_at) for row in rows]
            connection.executemany(_LEASE_DUE, [(due_at, transfer.id) for transfer in leased])
            turn.known.update({transfer.id: transfer for transfer in leased})
        return leased

    async def make_due(self, *, now_ms: int) -> int:
        with self._database.call() as connection:
            turn = self._written(connection)
            connection.execute(_MAKE_DUE, (now_ms,))
            turn.known.clear()
            count: int = connection.execute(_COUNT_OPEN).fetchall()[0][0]
        return count

    async def history(self, query: HistoryQuery) -> HistoryPage:
        assert query.most > 0, "a page shows something"
        assert query.direction in {None, "in", "out"}, f"no such direction: {query.direction}"
        assert query.direction is None or query.account_type is not None, "a direction needs an account type"
        with self._database.call() as connection:
            turn = self._written(connection)
            until = turn.last_sequence if query.until is None else query.until
            top = until if query.after is None else min(until, query.after - 1)
            floor = 0
            if _is_filtered(query):
                row = connection.execute(_SELECT_FLOOR, (query.owner, top, HISTORY_SCAN_MAX - 1)).fetchone()
                floor = 0 if row is None else row[0]
            rows = connection.execute(
                _SELECT_HISTORY,
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
            ).fetchall()
        next_after = floor or None
        if len(rows) > query.most:
            del rows[query.most :]
            next_after = rows[-1][-1]
        return HistoryPage([transfer_of(row) for row in rows], until, next_after)

    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        statement = _SELECT_SUCCESS if status is Status.SUCCESS else _SELECT_BY_STATUS
        with self._database.call() as connection:
            self._written(connection)
            rows = connection.execute(statement, (status, 0 if after is None else after, most)).fetchall()
        return [transfer_of(row) for row in rows]

    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        with self._database.call() as connection:
            self._written(connection)
            rows = connection.execute(_SELECT_STUCK, (open_before_ms, most)).fetchall()
        return [transfer_of(row) for row in rows]

    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        use = (owner, asset, day)
        with self._database.call() as connection:
            self._turn.learn_uses(connection, (use,))
            return self._turn.uses[use]

    async def open_summary(self) -> OpenSummary:
        by_status = dict.fromkeys((Status.REQUESTING, Status.PENDING), 0)
        oldest_open: dict[Status, int] = {}
        needs_person: dict[str, int] = {}
        with self._database.call() as connection:
            self._written(connection)
            for stored, need, count, oldest in connection.execute(_SUMMARISE_OPEN):
                status = status_of(stored)
                by_status[status] += count
                oldest_open[status] = min(oldest, oldest_open.get(status, oldest))
                if need is not None:
                    needs_person[need] = needs_person.get(need, 0) + count
            oldest_asked = dict(connection.execute(_SUMMARISE_ASKED).fetchall())
        return OpenSummary(by_status, oldest_asked, oldest_open, needs_person)

    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        with self._database.call() as connection:
            self._written(connection)
            rows = connection.execute(_SELECT_FEED, (after, most)).fetchall()
        return [(row[5], event_of(row)) for row in rows]

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        with self._database.call() as connection:
            bindings = [(number, each.owner, each.type, each.asset) for number, each in enumerate(accounts)]
            numbers = {accounts[place]: n for place, n in connection.executemany(_SELECT_REGISTERED, bindings)}
            for account in accounts:
                if account not in numbers:
                    connection.execute(_REGISTER, (account.owner, account.type, account.asset))
                    numbers[account] = connection.last_insert_rowid()
        return [RegisteredAccount(numbers[account], account) for account in accounts]

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        with self._database.call() as connection:
            rows = connection.execute(_SELECT_OWNER_REGISTERED, (owner,)).fetchall()
        return [RegisteredAccount(number, Account(owner, kind, asset)) for number, kind, asset in rows]

    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        with self._database.call() as connection:
            rows = connection.executemany(_SELECT_NUMBER, [(number,) for number in numbers])
            accounts = {number: Account(owner, kind, asset) for number, owner, kind, asset in rows}
        return [accounts.get(number) for number in numbers]

    async def lease_worker(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        worker: int | None
        with self._database.call() as connection:
            ((worker,),) = connection.execute(_SELECT_WORKER, (holder, WORKERS_MAX, now_ms))
            if worker is not None:
                connection.execute(_LEASE_WORKER, (worker, holder, now_ms + lease_ms))
        if worker is None:
            raise Unavailable(System.STORE, f"all {WORKERS_MAX} worker ids are leased; stop a process, or wait")
        return worker

    async def ledger_seen(self) -> int:
        with self._database.call() as connection:
            self._turn.prepare(connection)
            return self._turn.ledger_seen


def _illegal(before: Transfer, after: Transfer) -> IllegalTransition | None:
    """What is wrong with a change; a final transfer takes none at all."""
    if after.status is before.status:
        if before.status not in OPEN:
            return IllegalTransition(f"{after.id}: {before.status} is final")
    elif after.status not in TRANSITIONS[before.status]:
        return IllegalTransition(f"{after.id}: {before.status} -> {after.status}")
    assert after.version == before.version + (after.status is not before.status), f"{after.id}: a wrong version"
    assert (
        after.amount == before.amount
        and after.source == before.source
        and after.target == before.target
        and after.owner == before.owner
        and after.key == before.key
        and after.memo == before.memo
        and after.created_at == before.created_at
    ), f"{after.id}: what was asked for never changes"
    return None


def _is_filtered(query: HistoryQuery) -> bool:
    return bool(query.statuses) or not (
        query.asset is query.account_type is query.from_ms is query.to_ms is None
    )
