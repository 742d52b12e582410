"""Which system stands behind each port, and how it is reached; the settings' part about them.

Passwords are not here: they come from the environment (`settings.SECRETS`).
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from internal_transfer.ports.errors import StartRefusedError

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


class Tls(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether the connection is encrypted, and with which files; without a CA file the system's authorities count."""

    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class PostgresqlSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """How many connections each process opens; where and who is in the secret URL, TLS too."""

    connections: Annotated[int, Meta(ge=1, le=64)]


class CassandraSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where ScyllaDB or Cassandra is, and how a keyspace is made that does not exist."""

    hosts: Annotated[list[Address], Meta(min_length=1)]
    keyspace: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
    user: str
    local_data_center: str
    replication: Annotated[int, Meta(ge=1, le=9)]


class TigerBeetleSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster and its replicas' addresses."""

    cluster: Annotated[str, Meta(pattern=r"^[0-9]{1,39}$")]
    addresses: Annotated[list[Address], Meta(min_length=1)]


class LedgerSocket(Struct, frozen=True, forbid_unknown_fields=True):
    """The data directory of the process with the role `ledger`."""

    data: str


class KafkaSystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The brokers, and as whom to speak to them (SASL, where a user is given)."""

    servers: Annotated[list[Address], Meta(min_length=1)]
    prefix: Name
    mechanism: Annotated[str, Meta(pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")]
    user: str


class AeronSystem(Struct, frozen=True, forbid_unknown_fields=True):
    """The media driver's directory, and the channels to and from the cores."""

    directory: str
    commands: str
    verdicts: str


class ValkeySystem(Tls, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Encryption; where and who is in the secret URL."""
