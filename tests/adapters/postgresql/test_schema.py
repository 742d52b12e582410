"""Starts on a schema or server that does not fit, migrations, and the findings for `doctor`."""

import asyncio
import sys

import pytest
from msgspec.structs import replace

import real_servers
from contracts.postgresql_schemas import PostgresqlSchema
from contracts.transfer_stores import PostgresqlStore
from internal_transfer.adapters.postgresql.migration import migrate
from internal_transfer.adapters.postgresql.pool import Pool
from internal_transfer.adapters.postgresql.schema import HEAD
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings
from internal_transfer.conformance.transfer_store.transfers import proposal, transfer
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable
from internal_transfer.ports.transfer_store import Accepted


@pytest.fixture
def schema():
    return PostgresqlSchema.fresh()


async def migrated(schema):
    """Migrates as the command line does, on a thread."""
    return await asyncio.to_thread(migrate, schema.settings)


async def refusal(settings):
    """The message with which a start is refused."""
    stack = PostgresqlStore(PostgresqlSchema(settings))
    try:
        with pytest.raises(StartRefusedError) as refused:
            await stack.start()
    finally:
        await stack.close()
    return str(refused.value)


async def test_processes_that_migrate_at_once_make_one_schema(schema):
    """Several processes can migrate the schema at once, and repeatedly; all end at the same step."""
    migrating = (
        "from internal_transfer.adapters.postgresql.migration import migrate\n"
        "from internal_transfer.adapters.postgresql.settings import PostgresqlSettings\n"
        f"print(migrate(PostgresqlSettings(url={schema.settings.url!r}, schema={schema.settings.schema!r})))"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", migrating, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [migrated(schema), migrated(schema), *[process.communicate() for process in processes]]
    assert await asyncio.gather(*answers) == [HEAD, HEAD, *[(f"{HEAD}\n".encode(), None)] * 2]
    assert await migrated(schema) == HEAD
    stack = await PostgresqlStore(schema).start()
    assert await stack.store.accept([proposal(transfer())]) == [Accepted()]
    await stack.close()


async def test_a_start_without_a_schema_says_what_to_run(schema):
    """Without a schema the start is refused, and the message has the command that creates it."""
    assert "internal-transfer migrate" in await refusal(schema.settings)


async def test_a_start_on_an_older_schema_says_what_to_run(schema):
    """A start does not change the tables of an earlier release."""
    await migrated(schema)
    await schema.execute(f"UPDATE schema_version SET step = {HEAD - 1}, runs_from = 1")
    assert f"step {HEAD - 1}, older than this release's {HEAD}: run `internal-transfer migrate`" in await refusal(
        schema.settings
    )


async def test_releases_run_side_by_side_until_the_schema_contracts(schema):
    """On a newer schema this release starts as long as `runs_from` allows it."""
    await migrated(schema)
    await schema.execute(f"UPDATE schema_version SET step = {HEAD + 1}, runs_from = {HEAD}")
    stack = await PostgresqlStore(schema).start()
    await stack.close()
    await schema.execute(f"UPDATE schema_version SET step = {HEAD + 1}, runs_from = {HEAD + 1}")
    assert "start a newer one" in await refusal(schema.settings)


async def test_a_newer_schema_is_not_migrated(schema):
    """The `migrate` of an older release refuses a newer schema and does not change it."""
    await migrated(schema)
    await schema.execute(f"UPDATE alembic_version SET version_num = '{HEAD + 1:04}'")
    with pytest.raises(StartRefusedError, match="newer release"):
        await migrated(schema)


async def test_missing_permissions_are_named(schema):
    """A start with missing permissions is refused and names the tables; with the grants it succeeds."""
    await migrated(schema)
    role, name = f"role_{schema.settings.schema}", schema.settings.schema
    await schema.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {name} TO {role}")
    settings = replace(schema.settings, url=schema.settings.url.replace("postgres@", f"{role}@"))
    try:
        message = await refusal(settings)
        assert "transfer_key" in message
        assert "commit_number" in message
        await schema.execute(f"""
            GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {name} TO {role};
            GRANT USAGE ON ALL SEQUENCES IN SCHEMA {name} TO {role}""")
        stack = await PostgresqlStore(PostgresqlSchema(settings)).start()
        assert await stack.store.accept([proposal(transfer())]) == [Accepted()]
        assert all(ok for _, ok, _ in await stack.store.check())
        await stack.close()
    finally:
        await schema.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_another_isolation_is_refused(schema):
    """The functions rely on READ COMMITTED: if the database has another default and the session cannot set its own,
    the start is refused.
    """
    await migrated(schema)
    role = f"role_{schema.settings.schema}"
    await schema.execute(
        f"CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET default_transaction_isolation = 'serializable';"
        f"ALTER ROLE {role} SET synchronous_commit = off"
    )
    settings = replace(schema.settings, url=schema.settings.url.replace("postgres@", f"{role}@"), pooled=True)
    try:
        message = await refusal(settings)
        assert "isolation: serializable" in message
        assert "synchronous_commit=off" in message
    finally:
        await schema.execute(f"DROP ROLE {role}")


async def test_a_database_that_does_not_exist_is_refused(schema):
    """A start with a wrong database name in the url is refused."""
    assert "does not exist" in await refusal(replace(schema.settings, url=f"{schema.settings.url}x"))


async def test_a_server_that_is_away_is_unavailable():
    """If nothing listens, the start is unavailable, so that it can be retried, and `check` returns it as a finding."""
    settings = PostgresqlSettings(url="postgresql://postgres@127.0.0.1:1/postgres")
    stack = PostgresqlStore(PostgresqlSchema(settings))
    with pytest.raises(Unavailable):
        await stack.start()
    ((name, ok, message),) = await stack.store.check()
    assert (name, ok) == ("connection", False)
    assert "127.0.0.1:1" in message
    await stack.close()


async def test_every_check_has_a_finding(schema):
    """`check` has a finding for everything that a start depends on, and all are right on a migrated schema."""
    await migrated(schema)
    stack = await PostgresqlStore(schema).start()
    found = await stack.store.check()
    assert {name for name, ok, _ in found if ok} == {
        "connection", "server version", "takes writes", "isolation", "commits are durable", "connections", "schema",
        "permissions",
    }  # fmt: skip
    await stack.close()


async def test_passwords_and_certificates():
    """With the right password and a client certificate the store runs over TLS. A wrong password is refused, and no
    message or repr contains either password.
    """
    address = real_servers.need("postgresql", secured=True)
    url = f"postgresql://{address.user}@{address.host}:{address.port}/{address.database}"
    if address.tls is not None:
        tls = address.tls
        url += f"?sslmode=verify-ca&sslrootcert={tls.ca_file}&sslcert={tls.certificate_file}&sslkey={tls.key_file}"
    settings = PostgresqlSettings(url=url, password=address.password, schema=PostgresqlSchema.unused())
    message = await refusal(replace(settings, password="wrong-one"))
    assert "password" in message
    assert "wrong-one" not in message + repr(settings)
    assert address.password not in message + repr(settings)
    schema = PostgresqlSchema(settings)
    assert await migrated(schema) == HEAD
    stack = await PostgresqlStore(schema).start()
    assert await stack.store.accept([proposal(transfer())]) == [Accepted()]
    secured = await stack.pool.read(
        System.STORE,
        lambda connection: connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
    )
    assert secured is (address.tls is not None)
    await stack.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 'x"; DROP'},
        {"connections": 0},
        {"waiting_max": -1},
        {"connect_seconds": 0.0},
        {"deadline_seconds": 1.0, "connect_seconds": 2.0},
        {"url": "mysql://x"},
    ],
)
def test_settings_that_cannot_work_are_refused(changes):
    """A schema name that is not an identifier, and numbers that cannot work, are refused before anything is opened."""
    with pytest.raises(StartRefusedError):
        PostgresqlSettings(**({"url": "postgresql://postgres@localhost/x"} | changes))


def test_the_url_is_not_in_the_repr():
    """A password in the url is neither in the repr nor in the place that messages show."""
    settings = PostgresqlSettings(url="postgresql://me:hidden@db.example.com:5432/x?sslpassword=hidden")
    assert "hidden" not in repr(settings) + settings.place
    assert settings.place == "db.example.com:5432/x"


async def test_a_closed_pool_takes_no_calls(schema):
    """After `close` a call is unavailable."""
    pool = Pool(schema.settings)
    await pool.close()
    with pytest.raises(Unavailable):
        await pool.read(System.STORE, lambda connection: connection.fetchval("SELECT 1"))
