"""Schemas of a real PostgreSQL for tests: each test run has its own, and each test starts with it empty."""

import atexit
import os

import asyncpg
import psycopg
from msgspec.structs import replace

import real_servers
from internal_transfer.adapters.postgresql.migration import migrate
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings

# As a replica, the session passes the triggers that forbid deletions. `ledger_seen` is reset, sequences go on.
_EMPTY = """
    SET session_replication_role = replica;
    DELETE FROM transfer; DELETE FROM transfer_key; DELETE FROM transfer_event; DELETE FROM feed_commit;
    DELETE FROM feed_reader; DELETE FROM daily_use; DELETE FROM registered_account; DELETE FROM worker_lease;
    DELETE FROM operations_pin; DELETE FROM operations_policy; DELETE FROM operations_audit;
    DELETE FROM operations_audit_head; DELETE FROM operations_api_key; DELETE FROM operations_report;
    INSERT INTO operations_audit_head VALUES (1, 0, repeat('0', 64));
    UPDATE ledger_seen SET timestamp = 0
"""


class PostgresqlSchema:
    """A schema, and connections to it that bypass the adapters."""

    _shared = None

    def __init__(self, settings):
        self.settings = settings

    @staticmethod
    def unused(name="test"):
        """A name that is not in use."""
        return f"{name}_{os.getpid()}_{os.urandom(3).hex()}"

    @classmethod
    def fresh(cls):
        """A schema of an unused name, not created yet; dropped when the tests end."""
        address = real_servers.need("postgresql")
        settings = PostgresqlSettings(url=address.dsn, schema=cls.unused())
        atexit.register(_drop, settings)
        return cls(settings)

    @classmethod
    async def emptied(cls):
        """The schema of this run, migrated, and without rows."""
        if cls._shared is None:
            cls._shared = cls.fresh()
            assert migrate(cls._shared.settings) > 0
        await cls._shared.execute(_EMPTY)
        return cls._shared

    @classmethod
    def made_on(cls, address):
        """A migrated schema on a server that ends with its test."""
        settings = PostgresqlSettings(url=address.dsn, password=address.password)
        migrate(settings)
        return cls(settings)

    async def execute(self, script):
        """Runs statements past the adapters."""
        connection = await self.connect()
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def connect(self):
        """A new connection, in the schema."""
        return await asyncpg.connect(self.settings.url, server_settings={"search_path": self.settings.schema})

    def with_settings(self, **changes):
        """The same schema with other settings."""
        return PostgresqlSchema(replace(self.settings, **changes))


def _drop(settings):
    # Registered after the servers' own end, so it runs before that.
    with psycopg.connect(settings.url, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{settings.schema}" CASCADE')
