"""The records of operation in SQLite: pins, policy, API keys, the audit chain and reports."""

import asyncio
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec
from msgspec.structs import replace

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.audit_chain import ChainWalk, chained, digest_of
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.operations import ApiKey, AuditEntry, ChainedEntry, Report

_SCHEMA = (
    """
    CREATE TABLE operations_pin(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE operations_policy(version INTEGER PRIMARY KEY, body TEXT NOT NULL, audit INTEGER NOT NULL) STRICT;
    CREATE TABLE operations_audit(
        number INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, reason TEXT NOT NULL, outcome TEXT NOT NULL, evidence TEXT NOT NULL,
        previous TEXT NOT NULL, digest TEXT NOT NULL) STRICT;
    CREATE TABLE operations_audit_head(
        one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, digest TEXT NOT NULL) STRICT;
    INSERT INTO operations_audit_head VALUES (1, 0, hex(zeroblob(32)));
    CREATE TABLE operations_api_key(
        key TEXT PRIMARY KEY, secret TEXT NOT NULL, passphrase_hash TEXT NOT NULL, owner TEXT NOT NULL,
        tier TEXT NOT NULL, created_at INTEGER NOT NULL, revoked INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE operations_report(
        number INTEGER PRIMARY KEY, at INTEGER NOT NULL, clean INTEGER NOT NULL, items TEXT NOT NULL) STRICT;
    """,
    "CREATE INDEX operations_audit_subject ON operations_audit(subject, action)",
)
_PINNED = "SELECT value FROM operations_pin WHERE name = ?"
_PINS = "SELECT name, value FROM operations_pin"
_PIN = "INSERT INTO operations_pin VALUES (?, ?)"
_NEWEST_POLICY = "SELECT body FROM operations_policy ORDER BY version DESC LIMIT 1"
_PUT_POLICY = "INSERT INTO operations_policy VALUES (?, ?, ?)"
_HEAD = "SELECT number, digest FROM operations_audit_head"
_MOVE_HEAD = "UPDATE operations_audit_head SET number = ?, digest = ?"
_APPEND = "INSERT INTO operations_audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_AUDIT = """
    SELECT number, at, actor, action, subject, reason, outcome, evidence, previous, digest
    FROM operations_audit WHERE number > ? ORDER BY number LIMIT ?"""
_AUDIT_ABOUT = """
    SELECT number, at, actor, action, subject, reason, outcome, evidence, previous, digest
    FROM operations_audit WHERE subject = ? AND action = ?"""
_PUT_API_KEY = """
    INSERT INTO operations_api_key VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET secret = excluded.secret, passphrase_hash = excluded.passphrase_hash,
        owner = excluded.owner, tier = excluded.tier, created_at = excluded.created_at, revoked = excluded.revoked"""
_API_KEY = """
    SELECT key, secret, passphrase_hash, owner, tier, created_at, revoked FROM operations_api_key WHERE key = ?"""
_PUT_REPORT = "INSERT INTO operations_report(at, clean, items) VALUES (?, ?, ?)"
_LAST_REPORT = "SELECT at, clean, items FROM operations_report ORDER BY number DESC LIMIT 1"

_ALL = -1
"""No limit, as SQLite's LIMIT writes it."""


class SqliteOperations:
    """Implements `Operations`; its rows are committed with the database's turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("operations", _SCHEMA)
        database.after_rollback(self._forget)
        self._policy: Policy | None = None

    async def pin(self, values: dict[str, str]) -> dict[str, str]:
        """Pins values at first use; see the port."""
        with self._database.call() as connection:
            pinned = {name: connection.execute(_PINNED, (name,)).fetchone() for name in values}
            others = {name: row[0] for name, row in pinned.items() if row is not None and row[0] != values[name]}
            if not others:
                connection.executemany(_PIN, [(name, values[name]) for name, row in pinned.items() if row is None])
            return others

    async def pins(self) -> dict[str, str]:
        """All pinned values by name."""
        with self._database.call() as connection:
            return dict(connection.execute(_PINS))

    async def policy(self) -> Policy:
        """The policy in force, from memory where it was read before."""
        with self._database.call() as connection:
            return self._in_force(connection)

    async def change_policy(self, policy: Policy, entry: AuditEntry) -> int | None:
        """Puts a policy in force as the version after the one it was based on; see the port."""
        after = replace(policy, version=policy.version + 1)
        body = msgspec.json.encode(after, order="deterministic").decode()
        with self._database.call() as connection:
            if self._in_force(connection).version != policy.version:
                return None
            number = _append(connection, entry)
            connection.execute(_PUT_POLICY, (after.version, body, number))
            self._policy = after
            return number

    async def append_audit(self, entry: AuditEntry) -> int:
        """Appends an entry to the chain and returns its number."""
        with self._database.call() as connection:
            return _append(connection, entry)

    async def audit(self, *, after: int, most: int) -> list[ChainedEntry]:
        """The entries with a number above `after`, rising."""
        with self._database.call() as connection:
            return [chained(row) for row in connection.execute(_AUDIT, (after, most))]

    async def audit_about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects, by rising number."""
        with self._database.call() as connection:
            rows = [row for subject in set(subjects) for row in connection.execute(_AUDIT_ABOUT, (subject, action))]
        return [chained(row) for row in sorted(rows)]

    async def verify_audit(self) -> int | None:
        """Verifies the whole chain in a thread, as of the last commit; see the port."""
        await self._database.durable()
        return await asyncio.to_thread(_first_break, self._database)

    async def put_api_key(self, key: ApiKey, entry: AuditEntry) -> None:
        """Stores a new API key, or a key's new state (revoked), together with its audit entry."""
        with self._database.call() as connection:
            _append(connection, entry)
            connection.execute(
                _PUT_API_KEY,
                (key.key, key.secret, key.passphrase_hash, key.owner, key.tier, key.created_at, key.revoked),
            )

    async def api_keys(self, keys: Sequence[str]) -> list[ApiKey | None]:
        """The API keys, in order."""
        with self._database.call() as connection:
            rows = [connection.execute(_API_KEY, (key,)).fetchone() for key in keys]
        return [None if row is None else _api_key(row) for row in rows]

    async def save_report(self, report: Report) -> int:
        """Stores a reconciliation report and returns its number."""
        with self._database.call() as connection:
            connection.execute(_PUT_REPORT, (report.at, report.clean, report.items))
            return connection.last_insert_rowid()

    async def last_report(self) -> Report | None:
        """The newest report."""
        with self._database.call() as connection:
            row = connection.execute(_LAST_REPORT).fetchone()
        return None if row is None else Report(at=row[0], clean=bool(row[1]), items=row[2])

    def _in_force(self, connection: apsw.Connection) -> Policy:
        if self._policy is None:
            row = connection.execute(_NEWEST_POLICY).fetchone()
            self._policy = Policy() if row is None else msgspec.json.decode(row[0], type=Policy)
        return self._policy

    def _forget(self) -> None:
        self._policy = None


def _append(connection: apsw.Connection, entry: AuditEntry) -> int:
    head = connection.execute(_HEAD).fetchone()
    if head is None:
        raise Unavailable(System.OPERATIONS, "the head of the audit chain was removed; nothing may be added to it")
    number, previous = int(head[0]) + 1, str(head[1])
    digest = digest_of(number, entry, previous)
    fields = (entry.at, entry.actor, entry.action, entry.subject, entry.reason, entry.outcome, entry.evidence)
    connection.execute(_APPEND, (number, *fields, previous, digest))
    connection.execute(_MOVE_HEAD, (number, digest))
    return number


def _first_break(database: Database) -> int | None:
    reader = database.open_reader()
    walk = ChainWalk()
    try:
        with reader:  # One snapshot, so that head and chain match even while an entry is being appended.
            head = reader.execute(_HEAD).fetchone()
            broken = walk.first_break(chained(row) for row in reader.execute(_AUDIT, (0, _ALL)))
    finally:
        reader.close()
    return walk.break_at_end(head) if broken is None else broken


def _api_key(row: tuple[Any, ...]) -> ApiKey:
    *fields, revoked = row
    return ApiKey(**dict(zip(ApiKey.__struct_fields__, (*fields, bool(revoked)), strict=True)))
