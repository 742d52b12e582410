"""Schemas of a real PostgreSQL for tests: each test run has its own, each test finds it empty."""

import atexit
import os

import asyncpg
import psycopg
from msgspec.structs import replace

import real_servers
from internal_transfer.adapters.postgresql.migration import migrate
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings

# What may not be deleted by hand is deleted as replication would. Marks go back, numbering goes on.
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
    """A schema, and a way past the adapters."""

    _shared = None

    def __init__(self, settings):
        self.settings = settings

    @staticmethod
    def unused(name="test"):
        """A name that nobody uses."""
        return f"{name}_{os.getpid()}_{os.urandom(3).hex()}"

    @classmethod
    def fresh(cls):
        """A name that nobody uses, with nothing made; dropped when the tests end."""
        address = real_servers.need("postgresql")
        settings = PostgresqlSettings(url=address.dsn, schema=cls.unused())
        atexit.register(_drop, settings)
        return cls(settings)

    @classmethod
    async def emptied(cls):
        """The schema of this run, with all steps taken and no rows."""
        if cls._shared is None:
            cls._shared = cls.fresh()
            assert migrate(cls._shared.settings) > 0
        await cls._shared.execute(_EMPTY)
        return cls._shared

    @classmethod
    def made_on(cls, address):
        """A schema on a server that goes away with its test."""
        settings = PostgresqlSettings(url=address.dsn, password=address.password)
        migrate(settings)
        return cls(settings)

    async def execute(self, script):
        """Runs statements by hand."""
        connection = await self.connect()
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def connect(self):
        """A connection of one's own, in the schema."""
        return await asyncpg.connect(self.settings.url, server_settings={"search_path": self.settings.schema})

    def with_settings(self, **changes):
        """The same schema, used otherwise."""
        return PostgresqlSchema(replace(self.settings, **changes))


def _drop(settings):
    # Registered after the servers' own ending was, so it runs before it.
    with psycopg.connect(settings.url, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{settings.schema}" CASCADE')
