"""Keyspaces of a real Cassandra for tests: each test run has its own, each test finds it empty."""

import os
import re
from pathlib import Path

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import WhiteListRoundRobinPolicy

import real_servers
from internal_transfer.adapters.cassandra.operations import MIGRATIONS as OPERATIONS
from internal_transfer.adapters.cassandra.operations import STATEMENTS, CassandraOperations
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.adapters.cassandra.transfer_store import statements
from internal_transfer.adapters.cassandra.transfer_store.store import MIGRATIONS, CassandraTransferStore
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.errors import System

_OWN_TIMES = {"ledger_seen", "operations_api_key"}
"""Tables whose writes carry times of their own, which a deletion would hide."""


class CassandraKeyspace:
    """A keyspace with all tables, and a way past the adapters."""

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
        """The keyspace that the tests of this run share; skips where there is no server."""
        if cls._shared is None:
            cls._shared = cls(real_servers.need("cassandra"))
        return cls._shared

    def execute(self, statement):
        """Runs a statement past the adapters."""
        return list(self._session.execute(statement, timeout=60))

    def empty(self, migrations):
        """Empties the tables of an adapter, of which a test fills few partitions: a truncation takes far longer."""
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

    async def session(self, system=System.STORE):
        """A started session, as of a process of its own."""
        cql = Cql(self.settings, SystemClock(), system=system)
        await cql.start()
        return cql

    def _drop_what_ended_runs_left(self):
        # The driver's threads are gone before a process's last callbacks run, so nothing can be dropped at the end.
        for (name,) in self.execute("SELECT keyspace_name FROM system_schema.keyspaces"):
            parts = name.split("_")
            if len(parts) == 3 and parts[0] == "test" and not Path(f"/proc/{parts[1]}").exists():
                self.execute(f"DROP KEYSPACE IF EXISTS {name}")


class CassandraStore:
    """The CQL store on an emptied keyspace; stopping and starting again forgets what the process knew."""

    def __init__(self, keyspace, cql):
        self.keyspace = keyspace
        self.cql = cql
        self.store = None

    @classmethod
    async def opened(cls):
        """Starts as a process does, with the checks of a start."""
        keyspace = CassandraKeyspace.of_this_run()
        stack = cls(keyspace, await keyspace.session())
        stack.store = await CassandraTransferStore.open(stack.cql)
        keyspace.empty(MIGRATIONS)
        return stack

    async def durable(self):
        """Nothing to wait for: what the store answered is on disk."""

    async def reopen(self):
        """Another process takes over, which knows nothing of what this one knew."""
        self.store = await self.another()

    async def another(self):
        """The store as another process has it."""
        return CassandraTransferStore(Tables(self.cql, await self.cql.prepare(statements.ALL)))

    async def close(self):
        """Ends the connections."""
        await self.cql.close()


class CassandraOperationsStack:
    """The CQL operations on an emptied keyspace; each `open` is a process that knows nothing yet."""

    def __init__(self, keyspace, cql):
        self.keyspace = keyspace
        self._cql = cql
        self._prepared = None

    @classmethod
    async def opened(cls):
        """Starts as a process does, and empties the tables."""
        keyspace = CassandraKeyspace.of_this_run()
        stack = cls(keyspace, await keyspace.session(System.OPERATIONS))
        await CassandraOperations.open(stack._cql)
        stack._prepared = await stack._cql.prepare(STATEMENTS)
        keyspace.empty(OPERATIONS)
        return stack

    def open(self):
        """The operations as one more process has them."""
        return self.open_on(self._cql)

    def open_on(self, cql):
        """The operations as a process with this connection has them."""
        return CassandraOperations(cql, self._prepared)

    async def durable(self):
        """Nothing to wait for."""

    async def tamper(self, statements):
        """Runs statements past the adapter, with `#` for the keyspace."""
        for statement in statements.split(";"):
            self.keyspace.execute(statement.replace("#", f"{self.keyspace.settings.keyspace}."))

    async def close(self):
        """Ends the connections."""
        await self._cql.close()
