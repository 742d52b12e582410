"""How a CQL cluster is reached."""

import ssl
from enum import StrEnum

from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.systems import TlsFiles


class Reach(StrEnum):
    """Whose agreement counts: replicas of the local data centre, or of all of them."""

    LOCAL = "local"
    EVERYWHERE = "everywhere"


class CqlSettings(Struct, frozen=True, kw_only=True):
    """How the cluster is reached.

    `contact_points` are hosts; `datacenter` is the local one. `replication`, where given, is the map with which a
    missing keyspace is created, such as `{'class': 'NetworkTopologyStrategy', 'dc1': 3}`; `tablets` is said to
    ScyllaDB then. All processes that share the keyspace must have the same `reach`. `password` is not shown.
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


def tls_of(settings: CqlSettings) -> ssl.SSLContext | None:
    """The TLS that the settings ask for, or None; raises `StartRefusedError` for files that cannot be read."""
    files = settings.tls
    if files is None:
        return None
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
        # The driver connects to the addresses that the cluster tells, so certificates have to name those.
        context.check_hostname = settings.verify_host
        if files.certificate_file is not None:
            context.load_cert_chain(files.certificate_file, files.key_file)
    except OSError as error:
        raise StartRefusedError(f"the certificates for {settings!r} cannot be read: {error}") from error
    return context
