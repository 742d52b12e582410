"""Connects the driver to a CQL cluster: consistency, release and keyspace."""

import re
from typing import Any

from cassandra import ConsistencyLevel  # type: ignore[import-untyped]
from cassandra.auth import PlainTextAuthProvider  # type: ignore[import-untyped]
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session  # type: ignore[import-untyped]
from cassandra.policies import (  # type: ignore[import-untyped]
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import tuple_factory  # type: ignore[import-untyped]
from msgspec import Struct

from internal_transfer.adapters.cassandra.settings import CqlSettings, Reach
from internal_transfer.ports.errors import StartRefusedError

CASSANDRA_OLDEST = (4, 0)
"""Before 4.0 a SERIAL read could contradict the one before it (CASSANDRA-12126)."""


class Connected(Struct, frozen=True):
    """The driver's session, what ends it, and the server's name and release."""

    session: Any
    cluster: Any
    server: str


def serial_level(settings: CqlSettings) -> int:
    """The consistency level of conditional writes, and of reads that settle them."""
    is_everywhere = settings.reach is Reach.EVERYWHERE
    level: int = ConsistencyLevel.SERIAL if is_everywhere else ConsistencyLevel.LOCAL_SERIAL
    return level


def connect(settings: CqlSettings) -> Connected:
    """Connects, and creates the keyspace if the settings say how; blocks.

    Raises the driver's failures, and `StartRefusedError` for a release that is too old.
    """
    is_everywhere = settings.reach is Reach.EVERYWHERE
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(local_dc=settings.datacenter)),
        # The driver sends nothing a second time: only the caller knows what a statement means.
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=ConsistencyLevel.QUORUM if is_everywhere else ConsistencyLevel.LOCAL_QUORUM,
        serial_consistency_level=serial_level(settings),
        request_timeout=settings.request_seconds,
        row_factory=tuple_factory,
    )
    authentication = None
    if settings.user is not None:
        authentication = PlainTextAuthProvider(username=settings.user, password=settings.password or "")
    cluster = Cluster(
        contact_points=list(settings.contact_points),
        port=settings.port,
        auth_provider=authentication,
        ssl_context=settings.tls_context(),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(1.0, None),
        connect_timeout=settings.connect_seconds,
        control_connection_timeout=settings.connect_seconds,
        idle_heartbeat_interval=5,
        idle_heartbeat_timeout=5,
        protocol_version=4,
    )
    try:
        session = cluster.connect()
        server = _server_of(session, settings)
        _create_keyspace(session, settings)
        session.set_keyspace(settings.keyspace)
    except BaseException:
        cluster.shutdown()
        raise
    return Connected(session, cluster, server)


def _server_of(session: Session, settings: CqlSettings) -> str:
    """The server's name and release; refuses a release whose conditional writes are not reliable."""
    [(version,)] = session.execute("SELECT release_version FROM system.local")
    # ScyllaDB reports the release of Cassandra that it is compatible with, 3.0.8, and has tables of its own.
    is_scylla = session.execute(
        "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = 'system_distributed_everywhere'"
    )
    server = "ScyllaDB" if list(is_scylla) else f"Cassandra {version}"
    if release_of(str(version)) < CASSANDRA_OLDEST and server != "ScyllaDB":
        oldest = ".".join(map(str, CASSANDRA_OLDEST))
        raise StartRefusedError(f"{settings!r}: {server}; {oldest} or newer is needed")
    return server


def _create_keyspace(session: Session, settings: CqlSettings) -> None:
    if settings.replication is None:
        return
    tablets = ""
    if settings.tablets is not None:
        tablets = f" AND tablets = {{'enabled': {str(settings.tablets).lower()}}}"
    session.execute(
        f"CREATE KEYSPACE IF NOT EXISTS {settings.keyspace} WITH replication = {settings.replication}{tablets}",
        timeout=settings.connect_seconds * 3,
    )


def release_of(version: str) -> tuple[int, ...]:
    """The major and minor number of a version such as 5.0.9, 5.0-rc1 or 4.1-SNAPSHOT."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
