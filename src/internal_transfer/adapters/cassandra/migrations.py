"""Migrates a part of the keyspace to its newest version, one process at a time.

CQL has no transactions for its schema. So every statement says IF NOT EXISTS, a step may run twice, and it is recorded
as done only after all of its statements. A lease keeps two processes from changing the schema at once, which Cassandra
does not handle well; a process that stopped while it held the lease loses it when it expires.
"""

from collections.abc import Sequence

from cassandra.query import PreparedStatement  # type: ignore[import-untyped]

from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.ports.errors import StartRefusedError

LEASE_SECONDS = 60
"""How long a migrating process keeps others out; it renews the lease at each step."""

_PREPARED_MAX = 20
"""How often refused statements are prepared again, some tenths of a second apart."""

_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_version (part text PRIMARY KEY, version int, holder bigint, opened boolean)
"""
_SELECT = "SELECT version FROM schema_version WHERE part = ?"
_OPEN = "INSERT INTO schema_version (part, opened) VALUES (?, true) IF NOT EXISTS"
_LEASE = f"UPDATE schema_version USING TTL {LEASE_SECONDS} SET holder = ? WHERE part = ? IF holder = ?"  # noqa: S608
_RAISE = "UPDATE schema_version SET version = ? WHERE part = ? IF holder = ?"
_RETURN = "UPDATE schema_version SET holder = null WHERE part = ? IF holder = ?"


def statements_of(script: str) -> list[str]:
    """The statements of a `.cql` file, which end with a semicolon, without its comment lines."""
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in code.split(";") if statement.strip()]


async def migrate(cql: Cql, part: str, steps: Sequence[str], *, changing: bool = True) -> None:
    """Runs the steps that the keyspace does not have yet; step n leads to version n, and a released step never changes.

    Raises `StartRefusedError` if the keyspace is newer than this program, or if it is older and `changing` is false.
    If nothing is to do, it only reads.
    """
    found = await _version(cql, part)
    if found < len(steps):
        if not changing:
            raise StartRefusedError(
                f"{cql.settings!r}: {part} has version {found} and needs {len(steps)}; run `internal-transfer migrate`"
            )
        found = await _take_steps(cql, part, steps)
    if found > len(steps):
        raise StartRefusedError(
            f"{cql.settings!r}: {part} has version {found}, newer than our {len(steps)}; run the newer program"
        )


async def _version(cql: Cql, part: str) -> int:
    """The version on record; 0 if there is none."""
    if not await cql.has_table("schema_version"):
        return 0
    prepared = await _prepared(cql, [_SELECT])
    [rows] = await cql.read([cql.serially(prepared[_SELECT].bind((part,)))])
    return int(rows[0][0] or 0) if rows else 0


async def _prepared(cql: Cql, statements: Sequence[str]) -> dict[str, PreparedStatement]:
    """Prepares statements, several times if necessary: a table that another process is creating is listed before it can
    be used.
    """
    for _ in range(_PREPARED_MAX):
        try:
            return await cql.prepare(statements)
        except StartRefusedError:
            await cql.clock.sleep(0.1 + 0.1 * cql.clock.jitter())
    return await cql.prepare(statements)


async def _take_steps(cql: Cql, part: str, steps: Sequence[str]) -> int:
    await cql.define(_TABLE)
    prepared = await _prepared(cql, [_OPEN, _LEASE, _RAISE, _RETURN])
    holder = 1 + int(cql.clock.jitter() * 2**52)
    await cql.decide([prepared[_OPEN].bind((part,))])
    previous = None
    while (version := await _version(cql, part)) < len(steps):
        if not (await cql.decide([prepared[_LEASE].bind((holder, part, previous))]))[0]:
            previous = None
            await cql.clock.sleep(0.2 + 0.3 * cql.clock.jitter())
            continue
        previous = holder
        if await _version(cql, part) != version:
            continue
        for statement in statements_of(steps[version]):
            await cql.define(statement)
        await cql.decide([prepared[_RAISE].bind((version + 1, part, holder))])
    await cql.decide([prepared[_RETURN].bind((part, holder))])
    return version
