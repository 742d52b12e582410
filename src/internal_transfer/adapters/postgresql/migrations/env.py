"""Runs the steps in one transaction, one process at a time; only `migration.migrate` starts it."""

from alembic import context
from sqlalchemy import create_engine, pool, text

config = context.config
schema: str = config.attributes["schema"]
engine = create_engine(config.attributes["url"], poolclass=pool.NullPool)
with engine.connect() as connection, connection.begin():
    connection.execute(text("SELECT pg_advisory_xact_lock(1953396074, hashtext(:schema))"), {"schema": schema})
    # The steps do not qualify their names. The schema's name was checked to be a plain identifier.
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    connection.execute(text(f'SET LOCAL search_path = "{schema}"'))
    context.configure(connection=connection, version_table_schema=schema, transactional_ddl=True)
    context.run_migrations()
    config.attributes["step"] = connection.execute(text("SELECT step FROM schema_version")).scalar_one()
