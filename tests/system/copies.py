"""Copies of real systems as operators make them, which can be put back when the system has gone on."""

import shutil
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO

import asyncpg
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import WhiteListRoundRobinPolicy
from cassandra.query import dict_factory


class FileCopy:
    """The files of a companion, copied while it is stopped."""

    def __init__(self, companion, path):
        self._companion = companion
        self._path = path
        self._kept = path.with_name(f"{path.name}.kept")

    async def make(self):
        """Stops the process if it runs, copies, and starts it again."""
        was_running = self._companion.is_running
        await self._companion.stop()
        if self._path.is_dir():
            shutil.copytree(self._path, self._kept, ignore=shutil.ignore_patterns("*.sock"))
        else:
            shutil.copyfile(self._path, self._kept)
        if was_running:
            await self._companion.start()

    async def put_back(self):
        """Puts the copy in the place of the files; the process must be stopped."""
        if self._path.is_dir():
            shutil.rmtree(self._path)
        self._kept.replace(self._path)


class PostgresqlCopy:
    """The rows and sequences of a schema in one snapshot, which roles need not be stopped for."""

    def __init__(self, surroundings):
        self._dsn = surroundings.environment["INTERNAL_TRANSFER_POSTGRES_URL"]
        self._schema = surroundings.name
        self._rows = {}
        self._sequences = {}

    async def make(self):
        """Copies everything as of one moment."""
        async with self._connected() as connection, connection.transaction(isolation="repeatable_read"):
            for table in await self._relations(connection, "r"):
                rows = self._rows[table] = BytesIO()
                await connection.copy_from_table(table, schema_name=self._schema, output=rows, format="binary")
            for sequence in await self._relations(connection, "S"):
                self._sequences[sequence] = await connection.fetchrow(f"SELECT last_value, is_called FROM {sequence}")

    async def put_back(self):
        """Gives the schema its former rows, past the triggers that protect them from hands."""
        async with self._connected() as connection, connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(f"TRUNCATE {', '.join(self._rows)}")
            for table, rows in self._rows.items():
                rows.seek(0)
                await connection.copy_to_table(table, schema_name=self._schema, source=rows, format="binary")
            for sequence, (value, is_called) in self._sequences.items():
                await connection.execute("SELECT setval($1::text::regclass, $2, $3)", sequence, value, is_called)

    async def _relations(self, connection, kind):
        found = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind::text = $2",
            self._schema,
            kind,
        )
        return [name for (name,) in found]

    @asynccontextmanager
    async def _connected(self):
        connection = await asyncpg.connect(self._dsn, server_settings={"search_path": self._schema})
        try:
            yield connection
        finally:
            await connection.close()


class CassandraCopy:
    """The rows of a keyspace, in which nothing may go on while they are copied.

    They are put back into a keyspace of the same name that is made anew: what Paxos remembers of the lost tables is
    not about the new ones.
    """

    def __init__(self, surroundings):
        self._surroundings = surroundings
        self._keyspace = surroundings.name
        self._rows = {}

    async def make(self):
        """Copies everything."""
        with self._session() as session:
            tables = session.execute(
                "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s", (self._keyspace,)
            )
            for table in [row["table_name"] for row in tables]:
                self._rows[table] = list(session.execute(f"SELECT * FROM {self._keyspace}.{table}"))

    async def put_back(self):
        """Makes the keyspace anew, with its former rows."""
        with self._session() as session:
            session.execute(f"DROP KEYSPACE {self._keyspace}", timeout=60)
        await self._surroundings.migrate()
        with self._session() as session:
            for table, rows in self._rows.items():
                for row in rows:
                    # A partition with nothing but static columns has a row whose clustering columns are null.
                    cells = {column: value for column, value in row.items() if value is not None}
                    places = ", ".join(["%s"] * len(cells))
                    insert = f"INSERT INTO {self._keyspace}.{table} ({', '.join(cells)}) VALUES ({places})"
                    session.execute(insert, tuple(cells.values()))

    @contextmanager
    def _session(self):
        host, _, port = self._surroundings.environment["CASSANDRA_ADDRESS"].rpartition(":")
        profile = ExecutionProfile(
            load_balancing_policy=WhiteListRoundRobinPolicy([host]), row_factory=dict_factory, request_timeout=30
        )
        cluster = Cluster(
            [host], port=int(port), execution_profiles={EXEC_PROFILE_DEFAULT: profile}, protocol_version=4
        )
        try:
            yield cluster.connect()
        finally:
            cluster.shutdown()
