"""Creates what the service needs in the systems outside: tables and topics."""

import asyncio

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.settings.settings import Settings
from internal_transfer.settings.systems import CoreSystem, StoreSystem
from internal_transfer.wiring.client_settings import cql_settings, kafka_connection, postgresql_settings


def migrate_store(settings: Settings) -> list[str]:
    """Creates or upgrades the tables and returns a line about their version; nothing for the embedded store.

    Raises `StartRefusedError` or an operating failure.
    """
    if settings.systems.store is StoreSystem.POSTGRESQL:
        target = postgresql_settings(settings)
        from internal_transfer.adapters.postgresql.migration import migrate as run  # noqa: PLC0415

        return [f"PostgreSQL: the schema {target.schema} is at step {run(target)}"]
    if settings.systems.store is StoreSystem.CASSANDRA:
        asyncio.run(_migrate_cassandra(settings))
        return [f"Cassandra: the tables of {settings.cassandra.keyspace} are up to date"]
    return []


def make_topics(settings: Settings) -> list[str]:
    """Creates the missing topics and returns a line that names them; nothing if Kafka is not used.

    Raises `StartRefusedError` or an operating failure.
    """
    systems = settings.systems
    if systems.core is not CoreSystem.KAFKA and systems.events != "kafka":
        return []
    connection = kafka_connection(settings)
    from internal_transfer.adapters.kafka.topics import Cluster, Topics  # noqa: PLC0415

    made = asyncio.run(
        Cluster(connection, Topics(settings.kafka.prefix)).create_topics(partitions=settings.kafka.partitions)
    )
    return [f"Kafka: made {', '.join(made)}" if made else "Kafka: all topics are there"]


async def _migrate_cassandra(settings: Settings) -> None:
    target = cql_settings(settings)
    from internal_transfer.adapters.cassandra.operations import CassandraOperations  # noqa: PLC0415
    from internal_transfer.adapters.cassandra.session import Cql  # noqa: PLC0415
    from internal_transfer.adapters.cassandra.transfer_store.store import CassandraTransferStore  # noqa: PLC0415

    cql = Cql(target, SystemClock())
    await cql.start()
    try:
        await CassandraTransferStore.open(cql, migrating=True)
        await CassandraOperations.open(cql, migrating=True)
    finally:
        await cql.close()
