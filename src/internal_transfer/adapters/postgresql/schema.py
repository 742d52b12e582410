"""The version of the tables, and what else the server must provide before the service starts.

Each migration is a numbered step. `runs_from` names the oldest step whose release still works on the tables: steps
that add (new tables, new columns with a default, new functions) leave it as it is, and a step that removes something
raises it to the step whose release stopped using that. So two consecutive releases can run side by side.
"""

from internal_transfer.adapters.postgresql.pool import Connection
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.finding import Finding

HEAD = 2
"""The step that this release was written for."""

SERVER_VERSION_MIN = 150_000
"""PostgreSQL 15, in the form of `server_version_num`."""

_STATE = """
    SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(),
        current_setting('transaction_isolation'), current_setting('synchronous_commit'), current_setting('fsync'),
        current_setting('max_connections')::integer,
        EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = 'schema_version')
"""
_MISSING_RIGHTS = """
    SELECT 'the schema itself' WHERE NOT has_schema_privilege($1::text, 'USAGE')
    UNION ALL
    SELECT c.relname FROM pg_class c
    WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'S')
        AND NOT CASE c.relkind
            WHEN 'S' THEN has_sequence_privilege(c.oid, 'USAGE')
            ELSE has_table_privilege(c.oid, 'SELECT') AND (c.relname IN ('alembic_version', 'schema_version')
                OR (has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')))
            END
    UNION ALL
    SELECT p.proname FROM pg_proc p
    WHERE p.pronamespace = $1::text::regnamespace AND NOT has_function_privilege(p.oid, 'EXECUTE')
    ORDER BY 1
"""


async def checks(connection: Connection, settings: PostgresqlSettings) -> list[Finding]:
    """Returns everything that a start depends on. A finding that is wrong may leave out those that follow from it."""
    row = await connection.fetchrow(_STATE, settings.schema)
    assert row is not None, "a query without a table has one row"
    version, standby, isolation, commits, fsync, connections, has_schema = row
    found = [
        Finding(
            "server version",
            version >= SERVER_VERSION_MIN,
            f"{version // 10_000}.{version % 10_000}; 15 or newer is needed",
        ),
        Finding("takes writes", not standby, "a standby: give the address of the primary" if standby else "primary"),
        Finding(
            "isolation", isolation == "read committed", f"{isolation}; must be read committed (ALTER ROLE ... SET ...)"
        ),
        Finding(
            "commits are durable",
            commits != "off" and fsync == "on",
            f"synchronous_commit={commits}, fsync={fsync}; neither may be off",
        ),
        Finding(
            "connections",
            settings.connections < connections,
            f"{settings.connections} for each process, of the server's {connections}",
        ),
    ]
    if not has_schema:
        return [*found, Finding("schema", False, f"{settings.schema} is not set up: run `internal-transfer migrate`")]
    missing = [each[0] for each in await connection.fetch(_MISSING_RIGHTS, settings.schema)]
    if missing:
        return [
            *found,
            Finding("permissions", False, f"missing on {', '.join(missing)}: GRANT them, or run as the owner"),
        ]
    return [*found, Finding("permissions", True, "all"), await _step(connection, settings.schema)]


async def _step(connection: Connection, schema: str) -> Finding:
    # The schema's name was checked to be a plain identifier.
    row = await connection.fetchrow(f'SELECT step, runs_from FROM "{schema}".schema_version')  # noqa: S608
    if row is None:
        return Finding("schema", False, "its version is gone: restore the row of schema_version")
    step, runs_from = row
    if step < HEAD:
        return Finding(
            "schema", False, f"step {step}, older than this release's {HEAD}: run `internal-transfer migrate`"
        )
    if runs_from > HEAD:
        return Finding("schema", False, f"step {step} needs a release of step {runs_from} or later: start a newer one")
    return Finding("schema", True, f"step {step}, for releases of step {runs_from} or later")


async def refuse_unfit(connection: Connection, settings: PostgresqlSettings) -> None:
    """Raises `StartRefusedError`, which names everything that has to change first, if anything does."""
    wrong = [f"{each.name}: {each.message}" for each in await checks(connection, settings) if not each.ok]
    if wrong:
        raise StartRefusedError(f"PostgreSQL at {settings.place}: {'; '.join(wrong)}")
