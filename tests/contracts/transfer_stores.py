"""Our own transfer stores, opened for the contract suite."""

import apsw
import asyncpg

from contracts.cassandra_stores import CassandraStore
from contracts.postgresql_schemas import PostgresqlSchema
from internal_transfer.adapters.postgresql.pool import Pool
from internal_transfer.adapters.postgresql.transfer_store import PostgresqlTransferStore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.transfer_store import SqliteTransferStore
from internal_transfer.conformance.transfer_store.harness import StoreHarness
from internal_transfer.ports.errors import OutcomeUnknown


class EmbeddedStore(StoreHarness):
    """The embedded store on a file of its own.

    `turns`: "shared" keeps a test in one turn until it calls `durable`, "each" ends the turn after every call, "calls"
    lets the database commit every call, as it does beside foreign systems.
    """

    has_one_feed = True
    refusal = apsw.ConstraintError

    def __init__(self, path, turns):
        self._path = path
        self._turns = turns

    async def open(self):
        """Opens the file."""
        self.database = Database(self._path, each_call=self._turns == "calls")
        store = SqliteTransferStore(self.database)
        self.store = _Settled(store, self.database) if self._turns == "each" else store

    async def durable(self):
        """Ends the turn."""
        await self.database.durable()

    async def close(self):
        """Ends the turn and closes the file."""
        await self.durable()
        self.database.close()

    async def lose(self, *calls):
        """Makes calls in a turn whose commit fails; each is the name of a method and its arguments."""
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
        """Takes the open turn back, as a failed call of another adapter does."""
        with self.database.call() as connection:
            connection.execute("SELECT * FROM no_such_table")

    async def write(self, statement):
        """Runs a statement past the store, as someone who edits the database by hand would; raises `refusal`."""
        connection = apsw.Connection(str(self._path))
        try:
            connection.execute(statement)
        finally:
            connection.close()


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


class PostgresqlStore(StoreHarness):
    """The PostgreSQL store on a schema, by default that of this run, emptied; each `open` takes new connections."""

    has_one_feed = True
    refusal = asyncpg.IntegrityConstraintViolationError

    def __init__(self, schema=None):
        self.schema = schema

    async def open(self):
        """Starts as a process does, with the checks of a start."""
        if self.schema is None:
            self.schema = await PostgresqlSchema.emptied()
        self.pool = Pool(self.schema.settings)
        self.store = PostgresqlTransferStore(self.pool)
        await self.pool.start()
        await self.store.start()

    async def start(self):
        """Opens the store and returns the harness."""
        await self.open()
        return self

    async def close(self):
        """Ends the connections."""
        await self.pool.close()

    async def write(self, statement):
        """Runs a statement past the store, as someone who edits the database by hand would; raises `refusal`."""
        await self.schema.execute(statement)


class CassandraHarness(StoreHarness):
    """The CQL store on an emptied keyspace; a restart keeps the session and forgets what the process knew."""

    async def open(self):
        """Starts as a process does, with the checks of a start."""
        self._opened = await CassandraStore.opened()
        self.store = self._opened.store

    async def reopen(self):
        """Lets another process take over."""
        await self._opened.reopen()
        self.store = self._opened.store

    async def close(self):
        """Ends the session."""
        await self._opened.close()


EMBEDDED = {f"embedded-{turns}": turns for turns in ("shared", "each", "calls")}
ADAPTERS = (*EMBEDDED, "postgresql", "cassandra")
GUARDED = (*EMBEDDED, "postgresql")
"""The stores whose database itself refuses a statement that rewrites history; CQL has no such constraints."""


async def open_embedded(adapter, directory):
    """Opens an embedded store, empty, with its files in the directory."""
    harness = EmbeddedStore(directory / "store.db", EMBEDDED[adapter])
    await harness.open()
    return harness
