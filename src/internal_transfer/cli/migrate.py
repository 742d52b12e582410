"""`migrate`: makes what the service needs in the systems outside."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from internal_transfer.cli.exits import failures_end
from internal_transfer.settings.load import Settings, load
from internal_transfer.settings.systems import CoreSystem, StoreSystem
from internal_transfer.telemetry import configure_logging


def migrate(
    *, config: Annotated[Path | None, typer.Option(help="The settings of the service.", dir_okay=False)] = None
) -> None:
    """Makes or upgrades the tables of the store and the topics of Kafka. Safe to repeat, and while the service runs."""
    configure_logging()
    with failures_end():
        settings = load(config)
        lines = [*_migrate_store(settings), *_make_topics(settings)]
    for line in lines or ["nothing to do: the embedded store upgrades itself at its start"]:
        typer.echo(line)


def _migrate_store(settings: Settings) -> list[str]:
    if settings.systems.store is StoreSystem.POSTGRESQL:
        from internal_transfer.wiring.connections import postgresql_settings  # noqa: PLC0415 - takes long to import.

        target = postgresql_settings(settings)
        from internal_transfer.adapters.postgresql.migration import migrate as run  # noqa: PLC0415

        return [f"PostgreSQL: the schema {target.schema} is at step {run(target)}"]
    if settings.systems.store is StoreSystem.CASSANDRA:
        from internal_transfer.wiring.opening import migrate_cassandra  # noqa: PLC0415 - as above.

        asyncio.run(migrate_cassandra(settings))
        return [f"Cassandra: the tables of {settings.cassandra.keyspace} are up to date"]
    return []


def _make_topics(settings: Settings) -> list[str]:
    systems = settings.systems
    if systems.core is not CoreSystem.KAFKA and systems.events != "kafka":
        return []
    from internal_transfer.wiring.connections import kafka_connection  # noqa: PLC0415 - as above.

    connection = kafka_connection(settings)
    from internal_transfer.adapters.kafka.topics import Cluster, Topics  # noqa: PLC0415

    made = asyncio.run(
        Cluster(connection, Topics(settings.kafka.prefix)).create_topics(partitions=settings.kafka.partitions)
    )
    return [f"Kafka: made {', '.join(made)}" if made else "Kafka: all topics are there"]
