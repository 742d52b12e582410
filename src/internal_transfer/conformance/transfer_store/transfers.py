"""The transfer stores that the contract runs on, and the transfers it is told with."""

import apsw
import asyncpg
from msgspec.structs import replace

from contracts.cassandra_stores import CassandraStore
from contracts.postgresql_schemas import PostgresqlSchema
from internal_transfer.adapters.postgresql.pool import Pool
from internal_transfer.adapters.postgresql.transfer_store import PostgresqlTransferStore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore
from internal_transfer.domain.account import Account
from internal_transfer.domain.identifier import EPOCH_MS, MILLISECONDS_PER_DAY, snowflake
from internal_transfer.domain.leg import Leg, LegState, Side
from internal_transfer.domain.transfer import Transfer, advance, with_leg
from internal_transfer.ports.errors import OutcomeUnknown
from internal_transfer.ports.transfer_store import Change, Proposal

NO_LIMIT = 2**120
DAY = EPOCH_MS // MILLISECONDS_PER_DAY + 500
NOON = DAY * MILLISECONDS_PER_DAY + MILLISECONDS_PER_DAY // 2


def transfer(number=0, *, owner="ada", key=None, at=NOON, route=("funding", "spot"), asset="USDT", amount=100, **more):
    """A transfer whose id has this number within its millisecond; its key is its own unless given."""
    values = {
        "id": snowflake(at_ms=at, worker=1, counter=number),
        "owner": owner,
        "key": key or f"key-{at}-{number}",
        "source": Account(owner, route[0], asset),
        "target": Account(owner, route[1], asset),
        "amount": amount,
        "memo": None,
        "legs": (Leg(Side.TARGET, "engine"),),
        "created_at": at,
        "updated_at": at,
        "due_at": at + 3_000,
    }
    return Transfer(**(values | more))


def proposal(of, *, fingerprint=b"content", daily_units=NO_LIMIT):
    """The proposal to accept a transfer."""
    return Proposal(of, fingerprint, daily_units)


def step(before, status, *, failure=None, **more):
    """The change that takes a transfer to its next status, a second after its last one."""
    after = advance(before, status, failure=failure)
    return Change(before.revision, replace(after, updated_at=before.updated_at + 1_000, **more))


def with_state(before, state):
    """The transfer's legs with its first one in another state."""
    return with_leg(before, replace(before.legs[0], state=state)).legs


def asked(before):
    """The transfer's legs with its first one asked."""
    return with_state(before, LegState.ASKED)


class EmbeddedStore:
    """The embedded store on a file of its own.

    `turns`: "shared" lets a whole test run in one turn until it asks for more, "each" commits after every call from
    outside, "calls" lets the database itself commit every call, as it does beside foreign systems.
    """

    refusal = apsw.ConstraintError

    def __init__(self, path, turns):
        self._path = path
        self._turns = turns
        self._open()

    def _open(self):
        self.database = Database(self._path, each_call=self._turns == "calls")
        store = SqliteTransferStore(self.database)
        self.store = _Settled(store, self.database) if self._turns == "each" else store

    async def durable(self):
        """Waits until everything so far is on disk."""
        await self.database.durable()

    async def reopen(self):
        """Stops and starts again."""
        await self.database.durable()
        self.database.close()
        self._open()

    async def lose(self, *calls):
        """Makes some calls in a turn whose commit fails; each call is a method's name and its arguments."""
        self.database.connection.set_commit_hook(lambda: True)
        lost = False
        for name, arguments in calls:
            try:
                await getattr(self.store, name)(*arguments)
            except OutcomeUnknown:
                lost = True
        try:
            await self.database.durable()
        except OutcomeUnknown:
            lost = True
        self.database.connection.set_commit_hook(None)
        assert lost, "the commit was to fail"

    def break_turn(self):
        """Lets another adapter's call fail in the open turn, which takes the turn back before its end."""
        with self.database.call() as connection:
            connection.execute("SELECT * FROM no_such_table")

    async def write(self, statement):
        """Runs a statement past the store, as a hand in the database would; raises the stack's `refusal`."""
        connection = apsw.Connection(str(self._path))
        try:
            connection.execute(statement)
        finally:
            connection.close()

    def close(self):
        """Ends the last turn and closes the files."""
        self.database.close()


class _Settled:
    """A store whose every call has its own turn."""

    def __init__(self, store, database):
        self._store = store
        self._database = database

    def __getattr__(self, name):
        method = getattr(self._store, name)

        async def call(*arguments, **keywords):
            try:
                return await method(*arguments, **keywords)
            finally:
                await self._database.durable()

        return call


class PostgresqlStore:
    """The PostgreSQL store on an emptied schema; stopping and starting again takes new connections."""

    refusal = asyncpg.IntegrityConstraintViolationError

    def __init__(self, schema):
        self.schema = schema
        self.settings = schema.settings
        self._open()

    def _open(self):
        self.pool = Pool(self.settings)
        self.store = PostgresqlTransferStore(self.pool)

    async def start(self):
        """Starts as a process does, with the checks of a start."""
        await self.pool.start()
        await self.store.start()
        return self

    async def durable(self):
        """Nothing to wait for: what the store answered is on disk."""

    async def reopen(self):
        """Stops and starts again."""
        await self.pool.close()
        self._open()
        await self.start()

    async def write(self, statement):
        """Runs a statement past the store, as a hand in the database would; raises the stack's `refusal`."""
        await self.schema.execute(statement)

    async def close(self):
        """Ends the connections."""
        await self.pool.close()


EMBEDDED = {f"embedded-{turns}": turns for turns in ("shared", "each", "calls")}
ADAPTERS = (*EMBEDDED, "postgresql", "cassandra")
GUARDED = (*EMBEDDED, "postgresql")
"""Those whose database itself can refuse a statement that rewrites history; CQL has no such constraints."""


def open_embedded(adapter, directory):
    """Opens an embedded store, empty, with its files in the directory."""
    return EmbeddedStore(directory / "store.db", EMBEDDED[adapter])


async def open_store(adapter, directory):
    """Opens an adapter's store, empty; skips where its server is missing."""
    if adapter == "postgresql":
        return await PostgresqlStore(await PostgresqlSchema.emptied()).start()
    if adapter == "cassandra":
        return await CassandraStore.opened()
    return open_embedded(adapter, directory)


async def close_store(stack):
    """Ends what `open_store` opened."""
    await stack.durable()
    closing = stack.close()
    if closing is not None:
        await closing
