"""The transfer store in PostgreSQL.

A batch is one call of one function in the database, so it takes one round trip and one commit. The functions and their
order of locks are in `migrations/versions`. Any number of processes can work on one database.
"""

from collections.abc import Sequence

import asyncpg
from msgspec.structs import replace

from internal_transfer.adapters.postgresql import schema
from internal_transfer.adapters.postgresql.pool import Connection, Pool
from internal_transfer.adapters.postgresql.transfer_rows import (
    change_columns,
    proposal_columns,
    transfer_of,
)
from internal_transfer.adapters.postgresql.transfer_statements import Statements
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import NODES_MAX, TransferId
from internal_transfer.domain.transfer import RECORDABLE, IllegalTransition, Status, Transfer
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.transfer_fields import STATUS, read_event
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
    no_node_is_free,
)

BATCH_MAX = 256
"""The most transfers in one commit. Larger batches are cut, since each owner in one is a lock in the server's memory,
and the place of an event in its commit has to stay below 4096."""

HISTORY_SCAN_MAX = 20_000
"""How many rows are read for one filtered page. A page that reaches this is short, and its cursor leads on."""

_LEGAL = [f"{before}>{after}" for before, after in RECORDABLE]
_ILLEGAL = "IT001"
"""What `record_transfers` raises for a change of status that is not in `_LEGAL`."""

_ACCEPTED = Accepted()
_ID_TAKEN = IdTaken()


class PostgresqlTransferStore:
    """Implements `TransferStore`; when a call returns, its effect is on disk and every process sees it.

    `start` checks server and schema. The caller starts the pool before it, and closes the pool afterwards.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._statements = Statements(pool.settings.schema)

    async def start(self) -> None:
        """Raises `StartRefusedError`, which says what to do, when server, schema or permissions do not fit."""
        settings = self._pool.settings
        await self._pool.read(System.STORE, lambda connection: schema.refuse_unfit(connection, settings))

    async def check(self) -> list[Finding]:
        """Returns the findings for `doctor`: connection, version, durability, schema, permissions.

        A server that cannot be reached is a finding too, not an exception.
        """
        settings = self._pool.settings
        try:
            found = await self._pool.read(System.STORE, lambda connection: schema.checks(connection, settings))
        except Unavailable as error:
            return [Finding("connection", False, error.message)]
        return [Finding("connection", True, settings.place), *found]

    async def by_keys(self, keys: Sequence[tuple[Owner, str]], *, settled: bool = True) -> list[KeyTaken | None]:
        """What each key stands for, in order; `settled` first waits for the accepts of these owners under way."""
        if not keys:
            return []
        owners, names = zip(*keys, strict=True)

        async def look(connection: Connection) -> list[asyncpg.Record]:
            return await connection.fetch(self._statements.by_keys, owners, names)

        async def wait_and_look(connection: Connection) -> list[asyncpg.Record]:
            async with connection.transaction():
                await connection.execute(self._statements.wait_for_accepts, owners)
                return await look(connection)

        rows = await self._pool.read(System.STORE, wait_and_look if settled else look)
        found = {(row[1], row[2]): KeyTaken(transfer_of(row), row[25]) for row in rows}
        return [found.get(key) for key in keys]

    async def accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        """Records transfers; see the port.

        A proposal that repeats a key or an id of its batch goes into a later commit.
        """
        outcomes: list[AcceptOutcome] = []
        for batch in _cut_proposals(proposals):
            try:
                outcomes += await self._accept(batch)
            except Unavailable as error:
                if _ACCEPTED in outcomes:
                    raise OutcomeUnknown(System.STORE, f"only some proposals were recorded: {error.message}") from error
                raise
        return outcomes

    async def _accept(self, proposals: Sequence[Proposal]) -> list[AcceptOutcome]:
        columns = proposal_columns(proposals)
        statement = self._statements.accept
        row = await self._pool.write(System.STORE, lambda connection: connection.fetchrow(statement, *columns))
        assert row is not None, "accept_transfers returns one row"
        letters, rests = row
        if "K" not in letters and "L" not in letters and "I" not in letters:
            return [_ACCEPTED] * len(proposals)
        keys = [(each.transfer.owner, each.transfer.key) for each in proposals]
        claimed = [key for key, letter in zip(keys, letters, strict=True) if letter == "K"]
        try:
            taken = dict(zip(claimed, await self.by_keys(claimed, settled=False), strict=True))
        except Unavailable as error:
            if "A" in letters:
                raise OutcomeUnknown(System.STORE, f"recorded, but not all is known: {error.message}") from error
            raise
        outcomes: list[AcceptOutcome] = []
        for place, letter in enumerate(letters):
            match letter:
                case "A":
                    outcomes.append(_ACCEPTED)
                case "I":
                    outcomes.append(_ID_TAKEN)
                case "L":
                    outcomes.append(DailyLimitExceeded(int(rests[place])))
                case _:
                    claim = taken[keys[place]]
                    assert claim is not None, "a key is never removed"
                    outcomes.append(claim)
        return outcomes

    async def record(self, changes: Sequence[Change]) -> list[Transfer | None]:
        """Records changes; see the port. A batch that changes a transfer twice is several calls in one transaction."""
        batches = _cut_changes(changes)
        statement = self._statements.record
        columns = [change_columns(batch) for batch in batches]

        async def one(connection: Connection) -> list[list[TransferId]]:
            return [await connection.fetchval(statement, *columns[0], _LEGAL)]

        async def several(connection: Connection) -> list[list[TransferId]]:
            async with connection.transaction():
                return [await connection.fetchval(statement, *each, _LEGAL) for each in columns]

        if not batches:
            return []
        try:
            answers = await self._pool.write(System.STORE, one if len(batches) == 1 else several)
        except Unavailable as error:
            if isinstance(error.__cause__, asyncpg.PostgresError) and error.__cause__.sqlstate == _ILLEGAL:
                raise IllegalTransition(str(error.__cause__)) from error
            raise
        recorded: list[Transfer | None] = []
        for batch, answer in zip(batches, answers, strict=True):
            found = set(answer)
            recorded += [
                replace(each.after, revision=each.revision + 1) if each.after.id in found else None for each in batch
            ]
        return recorded

    async def get(self, transfer_ids: Sequence[TransferId]) -> list[Transfer | None]:
        """The transfers, in order."""
        rows = await self._rows(self._statements.get, transfer_ids)
        found = {row[0]: transfer_of(row) for row in rows}
        return [found.get(transfer_id) for transfer_id in transfer_ids]

    async def events(self, transfer_ids: Sequence[TransferId]) -> list[list[Event]]:
        """The events of each transfer, by version."""
        found: dict[TransferId, list[Event]] = {transfer_id: [] for transfer_id in transfer_ids}
        for row in await self._rows(self._statements.events, list(found)):
            found[row[0]].append(read_event(row))
        return [found[transfer_id] for transfer_id in transfer_ids]

    async def lease_due(self, *, now_ms: int, lease_ms: int, most: int) -> list[Transfer]:
        """Leases due transfers: makes them due again when the lease ends. Skips rows that others are writing."""
        statement = self._statements.lease_due
        rows = await self._pool.write(
            System.STORE, lambda connection: connection.fetch(statement, now_ms, now_ms + lease_ms, most)
        )
        return [transfer_of(row) for row in rows]

    async def make_due(self, *, now_ms: int) -> int:
        """Makes all open transfers due; returns how many are open."""
        statement = self._statements.make_due
        await self._pool.write(System.STORE, lambda connection: connection.execute(statement, now_ms))
        [row] = await self._rows(self._statements.count_open)
        return int(row[0])

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """One page; see the port.

        A filtered page reads at most `HISTORY_SCAN_MAX` rows, so it can be short, or empty, without being the last.
        """
        rows = await self._rows(
            self._statements.history,
            query.owner,
            query.until,
            query.after,
            list(query.statuses) or None,
            query.asset,
            query.account_type,
            query.direction,
            query.from_ms,
            query.to_ms,
            query.most + 1,
            HISTORY_SCAN_MAX - 1 if query.is_filtered else None,
        )
        until, floor = rows[0][-2:]
        next_after = floor or None
        if len(rows) > query.most:
            del rows[query.most :]
            next_after = rows[-1][25]
        # If no transfer fits, the query returns one row that has only the bounds.
        return HistoryPage([transfer_of(row) for row in rows if row[0] is not None], until, next_after)

    async def by_status(self, status: Status, *, after: TransferId | None, most: int) -> list[Transfer]:
        """Transfers in a status, by rising id; see the port."""
        statement = self._statements.by_success if status is Status.SUCCESS else self._statements.by_status
        return [transfer_of(row) for row in await self._rows(statement, status, after or 0, most)]

    async def stuck(self, *, open_before_ms: int, most: int) -> list[Transfer]:
        """Open transfers that are old or need a person; reads all open transfers."""
        return [transfer_of(row) for row in await self._rows(self._statements.stuck, open_before_ms, most)]

    async def daily_used(self, owner: Owner, asset: str, day: int) -> int:
        """How much of an asset one owner has used on one UTC day."""
        rows = await self._rows(self._statements.daily_used, owner, asset, day)
        return int(rows[0][0]) if rows else 0

    async def open_summary(self) -> OpenSummary:
        """A summary of the open transfers; reads all of them, so call it seldom."""
        summary = OpenSummary()
        for status, need, core, count, oldest, asked in await self._rows(self._statements.open_summary):
            summary.count(STATUS[status], need, count, oldest)
            if core is not None:
                summary.count_asked(core, asked)
        return summary

    async def feed(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Events by rising sequence number; first numbers those of commits that have become visible."""
        statement = self._statements.feed
        try:
            rows = await self._pool.write(System.STORE, lambda connection: connection.fetch(statement, after, most))
        except OutcomeUnknown as error:
            # The numbering is the same whether this call or a later one does it, and nothing was read.
            raise Unavailable(System.STORE, error.message) from error
        return [(row[5], read_event(row)) for row in rows]

    async def reader_position(self, reader: str) -> int:
        """The sequence number up to which a reader has read the feed; see the port."""
        rows = await self._rows(self._statements.reader_position, reader)
        return int(rows[0][0]) if rows else 0

    async def move_reader(self, reader: str, position: int) -> None:
        """Moves a reader's position in the feed forward, never back; see the port."""
        statement = self._statements.move_reader
        await self._pool.write(System.STORE, lambda connection: connection.execute(statement, reader, position))

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts, without gaps; accounts that have a number cost only a look-up."""
        if not accounts:
            return []
        owners = [account.owner for account in accounts]
        types = [account.type for account in accounts]
        assets = [account.asset for account in accounts]
        numbers = await self._numbers(owners, types, assets)
        if any(account not in numbers for account in accounts):
            statement = self._statements.register
            await self._pool.write(
                System.STORE, lambda connection: connection.execute(statement, owners, types, assets)
            )
            try:
                numbers = await self._numbers(owners, types, assets)
            except Unavailable as error:
                raise OutcomeUnknown(System.STORE, error.message) from error
        return [RegisteredAccount(numbers[account], account) for account in accounts]

    async def _numbers(self, owners: list[Owner], types: list[str], assets: list[str]) -> dict[Account, int]:
        rows = await self._rows(self._statements.find_registered, owners, types, assets)
        return {Account(row[1], row[2], row[3]): row[0] for row in rows}

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner, by number."""
        rows = await self._rows(self._statements.registered, owner)
        return [RegisteredAccount(row[0], Account(row[1], row[2], row[3])) for row in rows]

    async def registered_by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The account of each number, in order; None for a number that is not in use."""
        rows = await self._rows(self._statements.by_number, numbers)
        accounts = {row[0]: Account(row[1], row[2], row[3]) for row in rows}
        return [accounts.get(number) for number in numbers]

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a node number: the holder's own, else one never used, else the one whose lease ended longest ago."""
        statement = self._statements.lease_node
        node: int | None = await self._pool.write(
            System.STORE,
            lambda connection: connection.fetchval(statement, holder, NODES_MAX, now_ms, now_ms + lease_ms),
        )
        if node is None:
            raise no_node_is_free()
        return node

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp on record."""
        [row] = await self._rows(self._statements.ledger_seen)
        return int(row[0])

    async def _rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return await self._pool.read(System.STORE, lambda connection: connection.fetch(statement, *arguments))


def _cut_proposals(proposals: Sequence[Proposal]) -> list[Sequence[Proposal]]:
    """Cuts proposals into batches in which no key and no id repeats; nearly always into one."""
    count = len(proposals)
    if 0 < count <= BATCH_MAX:
        ids = {each.transfer.id for each in proposals}
        keys = {(each.transfer.owner, each.transfer.key) for each in proposals}
        if len(ids) == len(keys) == count:
            return [proposals]
    batches: list[list[Proposal]] = []
    seen: set[object] = set()
    for each in proposals:
        marks: set[object] = {each.transfer.id, (each.transfer.owner, each.transfer.key)}
        if not batches or len(batches[-1]) == BATCH_MAX or not seen.isdisjoint(marks):
            batches.append([])
            seen.clear()
        batches[-1].append(each)
        seen |= marks
    return list(batches)


def _cut_changes(changes: Sequence[Change]) -> list[Sequence[Change]]:
    """Cuts changes into batches in which no transfer repeats; nearly always into one."""
    if 0 < len(changes) <= BATCH_MAX and len({change.after.id for change in changes}) == len(changes):
        return [changes]
    batches: list[list[Change]] = []
    seen: set[TransferId] = set()
    for change in changes:
        if not batches or len(batches[-1]) == BATCH_MAX or change.after.id in seen:
            batches.append([])
            seen.clear()
        batches[-1].append(change)
        seen.add(change.after.id)
    return list(batches)
