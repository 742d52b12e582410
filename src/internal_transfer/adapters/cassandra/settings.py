"""How a CQL cluster is reached."""

import ssl
from enum import StrEnum

from msgspec import Struct

from internal_transfer.settings.tls import TlsFiles


class Reach(StrEnum):
    """Which replicas have to agree: those of the local data centre, or of all data centres."""

    LOCAL = "local"
    EVERYWHERE = "everywhere"


class CqlSettings(Struct, frozen=True, kw_only=True):
    """How the cluster is reached.

    `contact_points` are hosts; `datacenter` is the local one. If `replication` is given, a missing keyspace is created
    with that map, such as `{'class': 'NetworkTopologyStrategy', 'dc1': 3}`, and with `tablets`, which is for ScyllaDB.
    All processes that share a keyspace must have the same `reach`. `password` is not in the repr.
    """

    contact_points: tuple[str, ...]
    datacenter: str
    keyspace: str
    port: int = 9042
    user: str | None = None
    password: str | None = None
    tls: TlsFiles | None = None
    verify_host: bool = True
    reach: Reach = Reach.LOCAL
    replication: str | None = None
    tablets: bool | None = None
    request_seconds: float = 5.0
    connect_seconds: float = 10.0
    in_flight_max: int = 96
    waiting_max: int = 20_000

    def __repr__(self) -> str:
        """The address, without secrets."""
        return f"Cassandra at {','.join(self.contact_points)}:{self.port}/{self.keyspace}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Returns the TLS that is asked for, or None; raises `StartRefusedError` for files that cannot be used."""
        if self.tls is None:
            return None
        context = self.tls.context("Cassandra")
        # The driver connects to the addresses that the cluster announces, so certificates have to name those.
        context.check_hostname = self.verify_host
        return context
