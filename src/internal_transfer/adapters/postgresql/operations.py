"""The operators' record in PostgreSQL, with the audit chain; any number of processes share it.

An append locks the head of the chain until its commit, so that entries are appended one at a time.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from internal_transfer.adapters.postgresql import schema
from internal_transfer.adapters.postgresql.pool import Connection, Pool
from internal_transfer.domain.account import Owner
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.audit_chain import ChainWalk, chained, digest_of
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.operations import ApiKey, AuditEntry, ChainedEntry, Report

VERIFY_PAGE = 500
"""How many entries of the chain are verified before the event loop turns to other calls."""

_ENTRY = "number, at, actor, action, subject, reason, outcome, evidence, previous, digest"
_LOCK_PINS = "SELECT pg_advisory_xact_lock(1953396075, $1::text::regclass::oid::integer)"


class _Statements:
    """The statements for the tables of one schema."""

    # ruff: noqa: S608 - built from constants and the schema's name, which is checked to be an identifier.

    def __init__(self, schema_name: str) -> None:
        tables = f'"{schema_name}".operations_'
        self.pins_table = f"{tables}pin"
        self.pins = f"SELECT name, value FROM {tables}pin"
        self.pin = f"INSERT INTO {tables}pin SELECT * FROM unnest($1::text[], $2::text[])"
        self.newest_policy = f"SELECT body FROM {tables}policy ORDER BY version DESC LIMIT 1"
        self.put_policy = f"INSERT INTO {tables}policy VALUES ($1, $2, $3)"
        self.lock_head = f"SELECT number, digest FROM {tables}audit_head FOR UPDATE"
        self.move_head = f"UPDATE {tables}audit_head SET number = $1, digest = $2"
        self.append = f"INSERT INTO {tables}audit ({_ENTRY}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        self.audit = f"SELECT {_ENTRY} FROM {tables}audit WHERE number > $1 ORDER BY number LIMIT $2"
        self.audit_about = (
            f"SELECT {_ENTRY} FROM {tables}audit WHERE subject = ANY ($1::text[]) AND action = $2 ORDER BY number"
        )
        # One snapshot of head and chain, so that an entry appended meanwhile is in both or in neither.
        self.end = f"""
            SELECT h.number, h.digest, EXISTS (SELECT FROM {tables}audit WHERE number > $1) AS more
            FROM (VALUES (1)) AS one LEFT JOIN {tables}audit_head h ON true
        """
        self.put_api_key = f"""
            INSERT INTO {tables}api_key (key, secret, passphrase_hash, owner, tier, created_at, revoked)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (key) DO UPDATE SET secret = excluded.secret, passphrase_hash = excluded.passphrase_hash,
                owner = excluded.owner, tier = excluded.tier, created_at = excluded.created_at,
                revoked = excluded.revoked
        """
        self.api_keys = f"""
            SELECT key, secret, passphrase_hash, owner, tier, created_at, revoked
            FROM {tables}api_key WHERE key = ANY ($1::text[])
        """
        self.put_report = f"INSERT INTO {tables}report (at, clean, items) VALUES ($1, $2, $3) RETURNING number"
        self.last_report = f"SELECT at, clean, items FROM {tables}report ORDER BY number DESC LIMIT 1"


class PostgresqlOperations:
    """Implements `Operations` in the schema and with the pool of the transfer store."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._statements = _Statements(pool.settings.schema)

    async def start(self) -> None:
        """Raises `StartRefusedError`, which says what to do, when server, schema or permissions do not fit."""
        settings = self._pool.settings
        await self._pool.read(System.OPERATIONS, lambda connection: schema.refuse_unfit(connection, settings))

    async def pin(self, values: dict[str, str]) -> dict[str, str]:
        """Pins values at first use; see the port."""
        statements = self._statements

        async def pin(connection: Connection) -> dict[str, str]:
            async with connection.transaction():
                await connection.execute(_LOCK_PINS, statements.pins_table)
                pinned = {row[0]: row[1] for row in await connection.fetch(statements.pins)}
                others = {name: pinned[name] for name, value in values.items() if pinned.get(name, value) != value}
                new = {} if others else {name: value for name, value in values.items() if name not in pinned}
                if new:
                    await connection.execute(statements.pin, list(new), list(new.values()))
            return others

        return await self._pool.write(System.OPERATIONS, pin)

    async def pins(self) -> dict[str, str]:
        """All pinned values by name."""
        statement = self._statements.pins
        rows = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetch(statement))
        return {row[0]: row[1] for row in rows}

    async def policy(self) -> Policy:
        """The policy in force, read anew: another process may have changed it."""
        return await self._pool.read(System.OPERATIONS, self._in_force)

    async def change_policy(self, policy: Policy, entry: AuditEntry) -> int | None:
        """Puts a policy in force as the version after the one it was based on; see the port."""
        after = replace(policy, version=policy.version + 1)
        body = msgspec.json.encode(after, order="deterministic").decode()

        async def change(connection: Connection) -> int | None:
            async with connection.transaction():
                head = await self._locked_head(connection)
                if (await self._in_force(connection)).version != policy.version:
                    return None
                number = await self._append(connection, head, entry)
                await connection.execute(self._statements.put_policy, after.version, body, number)
            return number

        return await self._pool.write(System.OPERATIONS, change)

    async def append_audit(self, entry: AuditEntry) -> int:
        """Appends an entry to the chain; returns its number."""

        async def append(connection: Connection) -> int:
            async with connection.transaction():
                return await self._append(connection, await self._locked_head(connection), entry)

        return await self._pool.write(System.OPERATIONS, append)

    async def audit(self, *, after: int, most: int) -> list[ChainedEntry]:
        """Entries by rising number above `after`."""
        statement = self._statements.audit
        rows = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetch(statement, after, most))
        return [chained(tuple(row)) for row in rows]

    async def audit_about(self, action: str, subjects: Sequence[str]) -> list[ChainedEntry]:
        """All entries of one action about any of these subjects, by rising number."""
        statement, wanted = self._statements.audit_about, list(subjects)
        rows = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetch(statement, wanted, action))
        return [chained(tuple(row)) for row in rows]

    async def verify_audit(self) -> int | None:
        """Walks the whole chain page by page, and compares its end with the head in one query; see the port."""
        walk = ChainWalk()
        while True:
            page = await self.audit(after=walk.number, most=VERIFY_PAGE)
            broken = walk.first_break(page)
            if broken is not None:
                return broken
            if not page:
                head, more = await self._end(walk.number)
                if not more:
                    return walk.break_at_end(head)

    async def _end(self, number: int) -> tuple[tuple[int, str] | None, bool]:
        statement = self._statements.end
        row = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetchrow(statement, number))
        assert row is not None, "the query returns one row, with or without a head"
        return None if row[0] is None else (row[0], row[1]), row[2]

    async def put_api_key(self, key: ApiKey, entry: AuditEntry) -> None:
        """Stores an API key, or its new state (revoked), together with its audit entry."""
        values = (key.key, key.secret, key.passphrase_hash, key.owner, key.tier, key.created_at, key.revoked)

        async def put(connection: Connection) -> None:
            async with connection.transaction():
                await self._append(connection, await self._locked_head(connection), entry)
                await connection.execute(self._statements.put_api_key, *values)

        await self._pool.write(System.OPERATIONS, put)

    async def api_keys(self, keys: Sequence[str]) -> list[ApiKey | None]:
        """The API keys, in order."""
        statement, wanted = self._statements.api_keys, list(keys)
        rows = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetch(statement, wanted))
        found = {
            row[0]: ApiKey(
                key=row[0],
                secret=row[1],
                passphrase_hash=row[2],
                owner=Owner(row[3]),
                tier=row[4],
                created_at=row[5],
                revoked=row[6],
            )
            for row in rows
        }
        return [found.get(key) for key in keys]

    async def save_report(self, report: Report) -> int:
        """Stores a reconciliation report; returns its number."""
        statement = self._statements.put_report
        number: int = await self._pool.write(
            System.OPERATIONS,
            lambda connection: connection.fetchval(statement, report.at, report.clean, report.items),
        )
        return number

    async def last_report(self) -> Report | None:
        """The newest report, or None."""
        statement = self._statements.last_report
        row = await self._pool.read(System.OPERATIONS, lambda connection: connection.fetchrow(statement))
        return None if row is None else Report(at=row[0], clean=row[1], items=row[2])

    async def _in_force(self, connection: Connection) -> Policy:
        body = await connection.fetchval(self._statements.newest_policy)
        return Policy() if body is None else msgspec.json.decode(body, type=Policy)

    async def _locked_head(self, connection: Connection) -> tuple[int, str]:
        head = await connection.fetchrow(self._statements.lock_head)
        if head is None:
            raise Unavailable(System.OPERATIONS, "the head of the audit chain is gone; nothing can be appended")
        return head[0], head[1]

    async def _append(self, connection: Connection, head: tuple[int, str], entry: AuditEntry) -> int:
        number, previous = head[0] + 1, head[1]
        digest = digest_of(number, entry, previous)
        fields = (entry.at, entry.actor, entry.action, entry.subject, entry.reason, entry.outcome, entry.evidence)
        await connection.execute(self._statements.append, number, *fields, previous, digest)
        await connection.execute(self._statements.move_head, number, digest)
        return number
