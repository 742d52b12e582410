"""Keyspaces of a real Cassandra for tests: each test run has its own, and each test starts with it empty."""

import os
import re
from pathlib import Path

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import WhiteListRoundRobinPolicy

import real_servers
from contracts.cassandra_sessions import Connection
from internal_transfer.adapters.cassandra.operations import MIGRATIONS as OPERATIONS
from internal_transfer.adapters.cassandra.operations import STATEMENTS, CassandraOperations
from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.adapters.cassandra.transfer_store import statements
from internal_transfer.adapters.cassandra.transfer_store.store import MIGRATIONS, CassandraTransferStore
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.ports.errors import System

_OWN_TIMES = {"ledger_seen", "operations_api_key"}
"""Tables whose writes carry their own timestamps, which may be older than a deletion."""


class CassandraKeyspace:
    """A keyspace with all tables, and a connection to it that bypasses the adapters."""

    _shared = None

    def __init__(self, address):
        self.settings = CqlSettings(
            contact_points=(address.host,),
            port=address.port,
            datacenter=address.datacenter,
            keyspace=f"test_{os.getpid()}_{os.urandom(3).hex()}",
            replication="{'class': 'SimpleStrategy', 'replication_factor': 1}",
            request_seconds=15.0,
            in_flight_max=32,
        )
        profile = ExecutionProfile(load_balancing_policy=WhiteListRoundRobinPolicy([address.host]))
        self._cluster = Cluster(
            [address.host],
            port=address.port,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            protocol_version=4,
        )
        self._session = self._cluster.connect()
        self._keys = {}
        self._drop_what_ended_runs_left()

    @classmethod
    def of_this_run(cls):
        """The keyspace that the tests of this run share; skips if there is no server."""
        if cls._shared is None:
            cls._shared = cls(real_servers.need("cassandra"))
        return cls._shared

    def execute(self, statement):
        """Runs a statement past the adapters."""
        return list(self._session.execute(statement, timeout=60))

    def empty(self, migrations):
        """Empties the tables of an adapter. A test fills few partitions, and a truncation takes far longer."""
        script = "".join(migrations)
        for table in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", script):
            name = f"{self.settings.keyspace}.{table}"
            key = self._partition_key(table)
            partitions = self.execute(f"SELECT DISTINCT {', '.join(key)} FROM {name}")
            if table in _OWN_TIMES and partitions:
                self.execute(f"TRUNCATE {name}")
                continue
            for values in partitions:
                where = " AND ".join(f"{column} = %s" for column in key)
                self._session.execute(f"DELETE FROM {name} WHERE {where}", tuple(values))
        for insert in re.findall(r"(?m)^INSERT INTO (.*?);", script, re.DOTALL):
            self.execute(f"INSERT INTO {self.settings.keyspace}.{insert}")

    def _partition_key(self, table):
        if table not in self._keys:
            columns = self._session.execute(
                "SELECT column_name, kind, position FROM system_schema.columns"
                " WHERE keyspace_name = %s AND table_name = %s",
                (self.settings.keyspace, table),
            )
            parts = sorted((position, column) for column, kind, position in columns if kind == "partition_key")
            self._keys[table] = [column for _, column in parts]
        return self._keys[table]

    async def connect(self, system=System.STORE):
        """A connection of one more process."""
        connection = Connection(self.settings, system=system)
        await connection.cql.start()
        return connection

    def _drop_what_ended_runs_left(self):
        # When the last callbacks of a process run, the driver's threads have ended, so nothing can be dropped then.
        for (name,) in self.execute("SELECT keyspace_name FROM system_schema.keyspaces"):
            parts = name.split("_")
            if len(parts) == 3 and parts[0] == "test" and not Path(f"/proc/{parts[1]}").exists():
                self.execute(f"DROP KEYSPACE IF EXISTS {name}")


class CassandraStore:
    """The CQL store on an emptied keyspace."""

    def __init__(self, keyspace, connection):
        self.keyspace = keyspace
        self.connection = connection
        self.cql = connection.cql
        self.store = None

    @classmethod
    async def opened(cls):
        """Starts as a process does, with the checks of a start."""
        keyspace = CassandraKeyspace.of_this_run()
        stack = cls(keyspace, await keyspace.connect())
        stack.store = await CassandraTransferStore.open(stack.cql)
        keyspace.empty(MIGRATIONS)
        return stack

    async def durable(self):
        """Nothing to wait for: when a call returns, its effect is on disk."""

    async def reopen(self):
        """Replaces the store by that of a new process, which remembers nothing."""
        self.store = await self.another()

    async def another(self):
        """The store of one more process."""
        return CassandraTransferStore(await self.tables())

    async def tables(self):
        """The tables of one more process."""
        return Tables(self.cql, await self.cql.prepare(statements.ALL))

    async def close(self):
        """Ends the connections."""
        await self.cql.close()


class CassandraOperationsStack:
    """The CQL operations on an emptied keyspace; each `open` stands for a new process."""

    def __init__(self, keyspace, cql, prepared):
        self.keyspace = keyspace
        self._cql = cql
        self._prepared = prepared

    @classmethod
    async def opened(cls):
        """Starts as a process does, and empties the tables."""
        keyspace = CassandraKeyspace.of_this_run()
        cql = (await keyspace.connect(System.OPERATIONS)).cql
        await CassandraOperations.open(cql)
        prepared = await cql.prepare(STATEMENTS)
        keyspace.empty(OPERATIONS)
        return cls(keyspace, cql, prepared)

    def open(self):
        """The operations of one more process."""
        return self.open_on(self._cql)

    def open_on(self, cql):
        """The operations of a process with this session."""
        return CassandraOperations(cql, self._prepared)

    async def durable(self):
        """Nothing to wait for: when a call returns, its effect is on disk."""

    async def tamper(self, statements):
        """Runs statements past the adapter, with `#` for the keyspace."""
        for statement in statements.split(";"):
            self.keyspace.execute(statement.replace("#", f"{self.keyspace.settings.keyspace}."))

    async def close(self):
        """Ends the connections."""
        await self._cql.close()
