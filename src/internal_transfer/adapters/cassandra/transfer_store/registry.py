"""What the CQL transfer store keeps beside transfers: account numbers, worker leases, readers' positions, the
ledger's mark.
"""

from collections.abc import Sequence

from internal_transfer.adapters.cassandra.requests import Request
from internal_transfer.adapters.cassandra.transfer_store import statements as cql_text
from internal_transfer.adapters.cassandra.transfer_store.tables import STATEMENTS_PER_BATCH, Tables
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import NODES_MAX
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.transfer_store import RegisteredAccount, no_node_is_free

BUCKET_NUMBERS = 10_000
"""How many accounts one partition of the numbers has; never changes once there are any."""

_ROUNDS_MAX = 50
_MARK_DIVISOR = 1_000
"""A ledger's timestamps are nanoseconds and a write's are microseconds; the larger value wins where these are the
same."""


class Registry:
    """Numbers, leases, positions and the mark."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._bucket = 0
        self._seen = 0

    async def register(self, accounts: Sequence[Account]) -> list[RegisteredAccount]:
        """Numbers accounts; a number that was drawn for nothing (in a race, or by a process that died) stays unused."""
        owners = list(dict.fromkeys(account.owner for account in accounts))
        numbers = {each.account: each.number for owner in owners for each in await self.registered(owner)}
        new = [account for account in dict.fromkeys(accounts) if account not in numbers]
        for start in range(0, len(new), STATEMENTS_PER_BATCH):
            some = new[start : start + STATEMENTS_PER_BATCH]
            drawn = await self._draw(some)
            applied = await self._tables.cql.decide(
                [
                    self._tables.bind(cql_text.REGISTER, each.owner, each.type, each.asset, number)
                    for each, number in zip(some, drawn, strict=True)
                ]
            )
            numbers.update(zip(some, drawn, strict=True))
            for account, is_mine in zip(some, applied, strict=True):
                if not is_mine:
                    earlier = await self.registered(account.owner)
                    numbers[account] = next(each.number for each in earlier if each.account == account)
        return [RegisteredAccount(numbers[account], account) for account in accounts]

    async def _draw(self, accounts: Sequence[Account]) -> list[int]:
        """Takes the next numbers for accounts, in one partition."""
        tables = self._tables
        for _ in range(_ROUNDS_MAX):
            [rows] = await tables.cql.read([tables.bind(cql_text.SELECT_LAST_NUMBER, self._bucket)])
            last = rows[0][0] if rows else None
            end = (self._bucket + 1) * BUCKET_NUMBERS
            start = last if last is not None else self._bucket * BUCKET_NUMBERS
            if start + len(accounts) > end:
                # The few numbers that are left here are given up, so that a draw is always in one partition.
                self._bucket += 1
                continue
            drawn = range(start + 1, start + len(accounts) + 1)
            batch = [tables.bind(cql_text.MOVE_LAST_NUMBER, drawn[-1], self._bucket, last)]
            batch += [
                tables.bind(cql_text.INSERT_NUMBER, self._bucket, number, each.owner, each.type, each.asset)
                for number, each in zip(drawn, accounts, strict=True)
            ]
            if (await tables.cql.decide([tables.cql.batch(batch)]))[0]:
                return list(drawn)
            await tables.cql.clock.sleep(0.03 * tables.cql.clock.jitter())
        raise OutcomeUnknown(tables.cql.system, "too many processes register accounts at once")

    async def registered(self, owner: Owner) -> list[RegisteredAccount]:
        """The accounts of an owner, by number."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_REGISTERED, owner)])
        return [RegisteredAccount(number, Account(owner, kind, asset)) for number, kind, asset in sorted(rows)]

    async def by_number(self, numbers: Sequence[int]) -> list[Account | None]:
        """The accounts of some numbers, in the order asked."""
        answers = await self._tables.cql.read(
            [self._tables.bind(cql_text.SELECT_NUMBER, (number - 1) // BUCKET_NUMBERS, number) for number in numbers]
        )
        return [Account(Owner(rows[0][1]), rows[0][2], rows[0][3]) if rows else None for rows in answers]

    async def lease_node(self, holder: str, *, now_ms: int, lease_ms: int) -> int:
        """Leases a worker id: the holder's own, else one never used, else the one that ended longest ago."""
        tables = self._tables
        for _ in range(_ROUNDS_MAX):
            [rows] = await tables.cql.read([tables.cql.serially(tables.bind(cql_text.SELECT_WORKERS))])
            until = now_ms + lease_ms
            mine = next((row for row in rows if row[1] == holder), None)
            if mine is None and len(rows) < NODES_MAX:
                free = next(worker for worker in range(NODES_MAX) if worker >= len(rows) or rows[worker][0] != worker)
                request = tables.bind(cql_text.ADD_WORKER, free, holder, until)
            else:
                ended = sorted((row for row in rows if row[2] <= now_ms), key=lambda row: (row[2], row[0]))
                mine = mine or next(iter(ended), None)
                if mine is None:
                    raise no_node_is_free()
                free = mine[0]
                request = tables.bind(cql_text.MOVE_WORKER, holder, until, free, mine[1], mine[2])
            if (await tables.cql.decide([request]))[0]:
                return int(free)
            await tables.cql.clock.sleep(0.03 * tables.cql.clock.jitter())
        raise OutcomeUnknown(tables.cql.system, "too many processes lease worker ids at once")

    async def reader_position(self, reader: str) -> int:
        """How far a reader of the feed has come."""
        [rows] = await self._tables.cql.read(
            [self._tables.cql.serially(self._tables.bind(cql_text.SELECT_READER, reader))]
        )
        return rows[0][0] if rows else 0

    async def move_reader(self, reader: str, position: int) -> None:
        """Moves a reader forward."""
        tables = self._tables
        if not (await tables.cql.decide([tables.bind(cql_text.MOVE_READER, position, reader, position)]))[0]:
            await tables.cql.decide([tables.bind(cql_text.ADD_READER, reader, position)])
            await tables.cql.decide([tables.bind(cql_text.MOVE_READER, position, reader, position)])

    async def ledger_seen(self) -> int:
        """The largest ledger timestamp on record."""
        [rows] = await self._tables.cql.read([self._tables.bind(cql_text.SELECT_LEDGER_SEEN)])
        return (rows[0][0] or 0) if rows else 0

    def seeing_ledger(self, timestamp: int) -> list[Request]:
        """The request that raises the mark, where this process has not raised it so far yet."""
        if timestamp <= self._seen:
            return []
        return [self._tables.bind(cql_text.RAISE_LEDGER_SEEN, timestamp // _MARK_DIVISOR, timestamp)]

    def ledger_is_seen(self, timestamp: int) -> None:
        """Notes that the mark was raised."""
        self._seen = max(self._seen, timestamp)

    async def check(self) -> Finding:
        """Tells whether this process may write and read conditionally."""
        try:
            await self.move_reader("doctor", self._tables.cql.clock.now_ms())
            await self.reader_position("doctor")
        except OperatingFailureError as error:
            return Finding("cql permissions", False, f"{error}; grant SELECT and MODIFY on the keyspace")
        return Finding("cql permissions", True, "the tables can be read and conditionally written")
