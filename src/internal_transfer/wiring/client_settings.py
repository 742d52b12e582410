"""Turns the settings into those of each system's client: addresses, log-ins, certificates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.settings import Settings

if TYPE_CHECKING:
    from internal_transfer.adapters.aeron.settings import AeronConnection
    from internal_transfer.adapters.cassandra.settings import CqlSettings
    from internal_transfer.adapters.kafka.settings import KafkaConnection
    from internal_transfer.adapters.postgresql.settings import PostgresqlSettings
    from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleSettings
    from internal_transfer.adapters.valkey.settings import ValkeySettings


SOONER = 0.9
"""The share of a port's bound after which an adapter gives up. It knows whether a call was sent, so its failure says
more than the bound's.
"""
HALF = 0.5
"""The share for one step of a call with several steps, such as a query that is sent again."""


def kafka_connection(settings: Settings) -> "KafkaConnection":
    """Returns how Kafka is reached."""
    with extra("kafka"):
        from internal_transfer.adapters.kafka.settings import KafkaConnection, KafkaLogin, Mechanism  # noqa: PLC0415
    kafka = settings.kafka
    login = None
    if kafka.user:
        password = _secret(settings.secrets.kafka_password, "INTERNAL_TRANSFER_KAFKA_PASSWORD", "kafka.user")
        login = KafkaLogin(user=kafka.user, password=password, mechanism=Mechanism(kafka.mechanism))
    tls = kafka.files if kafka.tls else None
    bounds = settings.bounds
    return KafkaConnection(
        bootstrap=",".join(kafka.servers),
        tls=tls,
        login=login,
        delivery_seconds=HALF * min(bounds.core_seconds, bounds.bus_seconds, bounds.events_seconds),
    )


def postgresql_settings(settings: Settings) -> "PostgresqlSettings":
    """Returns how PostgreSQL is reached."""
    with extra("postgresql"):
        from internal_transfer.adapters.postgresql.settings import CONNECT_SECONDS, PostgresqlSettings  # noqa: PLC0415
    given = settings.postgresql
    url = _secret(settings.secrets.postgres_url, "INTERNAL_TRANSFER_POSTGRES_URL", "systems.store")
    bounds = settings.bounds
    deadline = SOONER * min(bounds.store_seconds, bounds.operations_seconds)
    return PostgresqlSettings(
        url=url,
        schema=given.db_schema,
        connections=given.connections,
        pooled=given.pooled,
        deadline_seconds=deadline,
        connect_seconds=min(CONNECT_SECONDS, deadline),
    )


def cql_settings(settings: Settings) -> "CqlSettings":
    """Returns how ScyllaDB or Cassandra is reached."""
    with extra("cassandra"):
        from internal_transfer.adapters.cassandra.settings import CqlSettings, Reach  # noqa: PLC0415
    given = settings.cassandra
    password = None
    if given.user:
        password = _secret(settings.secrets.cql_password, "INTERNAL_TRANSFER_CQL_PASSWORD", "cassandra.user")
    if given.tls and not given.ca_file:
        raise StartRefusedError("cassandra.ca_file: must be given where tls is true")
    return CqlSettings(
        contact_points=tuple(given.hosts),
        datacenter=given.datacenter,
        keyspace=given.keyspace,
        port=given.port,
        user=given.user or None,
        password=password,
        replication=given.replication or None,
        reach=Reach(given.reach),
        tablets=given.tablets,
        request_seconds=HALF * min(settings.bounds.store_seconds, settings.bounds.operations_seconds),
        # For Cassandra the authority's file alone turns TLS on.
        tls=given.files if given.ca_file else None,
    )


def tigerbeetle_settings(settings: Settings) -> "TigerBeetleSettings":
    """Returns how TigerBeetle is reached."""
    with extra("tigerbeetle"):
        from internal_transfer.adapters.tigerbeetle.ledger import TigerBeetleSettings  # noqa: PLC0415
    given = settings.tigerbeetle
    return TigerBeetleSettings(
        cluster_id=int(given.cluster),
        addresses=tuple(given.addresses),
        call_seconds=SOONER * settings.bounds.ledger_seconds,
    )


def valkey_settings(settings: Settings) -> "ValkeySettings":
    """Returns how Valkey is reached."""
    with extra("valkey"):
        from internal_transfer.adapters.valkey.settings import ValkeySettings  # noqa: PLC0415
    url = _secret(settings.secrets.redis_url, "INTERNAL_TRANSFER_REDIS_URL", "systems.rate_limiter")
    reached = ValkeySettings.of_url(url, files=settings.valkey.files, is_encrypted=settings.valkey.tls)
    # The other half is left to count in this process if Valkey does not answer.
    return replace(reached, deadline_seconds=HALF * settings.bounds.rate_limiter_seconds)


def aeron_connection(settings: Settings) -> "AeronConnection":
    """Returns how the cores are reached over Aeron."""
    from internal_transfer.adapters.aeron.settings import AeronConnection  # noqa: PLC0415

    given = settings.aeron
    return AeronConnection(
        directory=given.directory,
        commands=given.commands,
        verdicts=given.verdicts,
        heard_on=given.heard_on,
        first_stream=given.first_stream,
    )


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Raises `StartRefusedError`, which names the missing extra, if an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise StartRefusedError(
            f"the settings name {name}, but its client is not installed: install the package with its extra [{name}] "
            f"({error})"
        ) from error


def _secret(value: str, variable: str, key: str) -> str:
    if not value:
        raise StartRefusedError(f"{key}: needs the environment variable {variable}")
    return value
