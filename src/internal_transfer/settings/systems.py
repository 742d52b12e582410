"""Which system stands behind each port, and how it is reached; the settings' part about them.

Passwords are not here: they come from the environment (`settings.SECRETS`).
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.tls import Tls

Address = Annotated[str, Meta(pattern=r"^.+:[0-9]{1,5}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]


class StoreSystem(StrEnum):
    """What records transfers, and what operators decide."""

    EMBEDDED = "embedded"
    POSTGRESQL = "postgresql"
    CASSANDRA = "cassandra"


class LedgerSystem(StrEnum):
    """What holds the money; `socket` is the embedded ledger, served by a process with the role `ledger`."""

    EMBEDDED = "embedded"
    TIGERBEETLE = "tigerbeetle"
    SOCKET = "socket"


class CoreSystem(StrEnum):
    """How trading cores are told, and what brings their confirmations."""

    EMBEDDED = "embedded"
    KAFKA = "kafka"
    AERON = "aeron"


class LimiterSystem(StrEnum):
    """What counts requests."""

    EMBEDDED = "embedded"
    VALKEY = "valkey"


class EventsSystem(StrEnum):
    """Where the events of transfers are published."""

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
        """Tells whether the record is in the data directory, so that one process does everything."""
        return self.store is StoreSystem.EMBEDDED

    @property
    def shares_a_commit(self) -> bool:
        """Tells whether store, ledger and core are all embedded, so that their steps may share one commit."""
        embedded = (self.store, self.ledger, self.core)
        return embedded == (StoreSystem.EMBEDDED, LedgerSystem.EMBEDDED, CoreSystem.EMBEDDED)

    def check(self) -> None:
        """Raises `StartRefusedError` where processes that share a record would not share the money."""
        for name, value in (("ledger", self.ledger), ("core", self.core)):
            if not self.is_alone and value == "embedded":
                raise StartRefusedError(
                    f'systems.{name}: must not be "embedded" with systems.store = "{self.store}": processes that share '
                    f"a store must share the {name} too"
                )


class PostgresqlSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """How many connections each process opens; where and who is in the secret URL, TLS too.

    `pooled`: a PgBouncer in transaction mode is in between.
    """

    db_schema: Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
    connections: Annotated[int, Meta(ge=1, le=64)]
    pooled: bool = False


class CassandraSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where ScyllaDB or Cassandra is; `replication` makes a keyspace that does not exist, where it is given.

    `reach`, `local` or `everywhere`: whose agreement counts, the same for all processes. `tablets` is said to ScyllaDB
    for a keyspace that is made.
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
    """The cluster and its replicas' addresses."""

    cluster: Annotated[str, Meta(pattern=r"^[0-9]{1,39}$")]
    addresses: Annotated[list[Address], Meta(min_length=1)]


class LedgerSocket(Struct, frozen=True, forbid_unknown_fields=True):
    """The data directory of the process with the role `ledger`."""

    data: Annotated[str, Meta(min_length=1)]


class KafkaSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The brokers, and as whom to speak to them (SASL, where a user is given).

    `partitions` are those of a topic that is made; so many processes can share its work.
    """

    servers: Annotated[list[Address], Meta(min_length=1)]
    prefix: Name
    partitions: Annotated[int, Meta(ge=1, le=1000)]
    mechanism: Annotated[str, Meta(pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")]
    user: str


class AeronSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The media driver's directory, and the channels to and from the cores.

    `heard_on` is where the service listens for verdicts, if that differs from where the core sends them.
    """

    directory: str
    commands: str
    verdicts: str
    heard_on: str
    first_stream: Annotated[int, Meta(ge=1, le=2_000_000_000)]


class ValkeySystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files for TLS; where and who is in the secret URL, with the keys' prefix and whether it is a cluster."""
