"""The settings about other systems: which one stands behind each port, and how it is reached.

Passwords come from the environment (`SECRETS` in `settings/load.py`).
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.tls import Tls

Address = Annotated[str, Meta(pattern=r"^.+:[0-9]{1,5}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]


class StoreSystem(StrEnum):
    """The system that records transfers and operators' decisions."""

    EMBEDDED = "embedded"
    POSTGRESQL = "postgresql"
    CASSANDRA = "cassandra"


class LedgerSystem(StrEnum):
    """The system that holds the money; `socket` is the embedded ledger in a process with the role `ledger`."""

    EMBEDDED = "embedded"
    TIGERBEETLE = "tigerbeetle"
    SOCKET = "socket"


class CoreSystem(StrEnum):
    """How commands reach the trading cores, and their confirmations reach the service."""

    EMBEDDED = "embedded"
    KAFKA = "kafka"
    AERON = "aeron"


class LimiterSystem(StrEnum):
    """The system that counts requests."""

    EMBEDDED = "embedded"
    VALKEY = "valkey"


class EventsSystem(StrEnum):
    """Where events of transfers are published."""

    NONE = "none"
    KAFKA = "kafka"


class Systems(Struct, frozen=True, forbid_unknown_fields=True):
    """The system behind each port."""

    store: StoreSystem
    ledger: LedgerSystem
    core: CoreSystem
    rate_limiter: LimiterSystem
    events: EventsSystem

    @property
    def is_alone(self) -> bool:
        """Tells whether transfers are recorded in the data directory, so that one process does everything."""
        return self.store is StoreSystem.EMBEDDED

    @property
    def shares_a_commit(self) -> bool:
        """Tells whether store, ledger and core are all embedded, so that one commit can hold steps of all three."""
        embedded = (self.store, self.ledger, self.core)
        return embedded == (StoreSystem.EMBEDDED, LedgerSystem.EMBEDDED, CoreSystem.EMBEDDED)

    def check(self) -> None:
        """Raises `StartRefusedError` where processes would share a store but not the ledger or the core."""
        for name, value in (("ledger", self.ledger), ("core", self.core)):
            if not self.is_alone and value == "embedded":
                raise StartRefusedError(
                    f'systems.{name}: must not be "embedded" with systems.store = "{self.store}": processes that share '
                    f"a store must share the {name} too"
                )


class PostgresqlSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The schema, and the connections of each process; address, user and TLS are in the secret URL.

    `pooled` says that the connections go through a PgBouncer in transaction mode.
    """

    db_schema: Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    connections: Annotated[int, Meta(ge=1, le=64)]
    pooled: bool = False


class CassandraSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How ScyllaDB or Cassandra is reached; a missing keyspace is created with `replication`, where that is given.

    `reach` says which replicas must agree, `local` or `everywhere`, and is the same for all processes. `tablets` is an
    option of ScyllaDB for a keyspace that is created.
    """

    hosts: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    keyspace: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
    user: str
    datacenter: str
    replication: str
    reach: Annotated[str, Meta(pattern="^(local|everywhere)$")]
    tablets: bool | None = None


class TigerBeetleSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster's id, and the addresses of its replicas in their order."""

    cluster: Annotated[str, Meta(pattern=r"^[0-9]{1,39}$")]
    addresses: Annotated[list[Address], Meta(min_length=1)]


class LedgerSocket(Struct, frozen=True, forbid_unknown_fields=True):
    """The data directory of the process with the role `ledger`."""

    data: Annotated[str, Meta(min_length=1)]


class KafkaSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The brokers, and the user to log in as (by SASL; none where it is empty).

    `partitions` is the number for topics that are created, and so the most processes that can share their work.
    """

    servers: Annotated[list[Address], Meta(min_length=1)]
    prefix: Name
    partitions: Annotated[int, Meta(ge=1, le=1000)]
    mechanism: Annotated[str, Meta(pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")]
    user: str


class AeronSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The media driver's directory, and the channels to and from the cores.

    `heard_on` is the channel on which the service listens for verdicts, where it differs from the one cores send on.
    """

    directory: str
    commands: str
    verdicts: str
    heard_on: str
    first_stream: Annotated[int, Meta(ge=1, le=2_000_000_000)]


class ValkeySystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """TLS; everything else is in the secret URL: address, user, prefix of the keys, and whether it is a cluster."""
