"""What can be configured, as frozen values; `settings/load.py` reads and checks them."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from internal_transfer.domain.rules import Rules
from internal_transfer.settings.systems import (
    AeronSystem,
    CassandraSystem,
    KafkaSystem,
    LedgerSocket,
    PostgresqlSystem,
    Systems,
    TigerBeetleSystem,
    ValkeySystem,
)

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP server. Headers and bodies must be complete within the deadline; each process bounds its connections.

    `http_workers` is the number of HTTP workers. With 0 the service's own process speaks HTTP. Without the key there
    is one worker for each processor but the first, up to three, or none with a store that processes share.
    """

    receive_deadline_seconds: Seconds
    connections_max: Count
    http_workers: Annotated[int, Meta(ge=0, le=64)] | None = None


class Transfers(Struct, frozen=True, forbid_unknown_fields=True):
    """How transfers are accepted and answered.

    A client is answered when its transfer is final, or after `wait_seconds` (it may ask for up to 20 s). The gateway
    gives up on a request after `deadline_seconds`; nobody else works on its transfer for `lease_seconds` at a time. A
    transfer without a hold expires after `expiry_seconds`. New transfers are shed when a core has owed an answer for
    `core_silence_seconds`, when `open_max` transfers are open, and when `queue_max` requests wait.
    """

    wait_seconds: Annotated[float, Meta(ge=0, le=20)]
    deadline_seconds: Seconds
    lease_seconds: Seconds
    expiry_seconds: Seconds
    core_silence_seconds: Seconds
    open_max: Count
    queue_max: Count
    batch_max: Annotated[int, Meta(ge=1, le=2000)]


class Scanner(Struct, frozen=True, forbid_unknown_fields=True):
    """How often the scanner looks for due transfers, how long it leases them, and how many at a time."""

    interval_seconds: Seconds
    lease_seconds: Seconds
    batch_max: Annotated[int, Meta(ge=1, le=2000)]


class Retries(Struct, frozen=True, forbid_unknown_fields=True):
    """The first and the longest pause between attempts; the pause doubles each time, with jitter."""

    first_seconds: Seconds
    longest_seconds: Seconds


class Alerts(Struct, frozen=True, forbid_unknown_fields=True):
    """The ages at which an open transfer counts as stuck, raises an alert, and is critical."""

    stuck_seconds: Seconds
    alert_seconds: Seconds
    critical_seconds: Seconds


class PortBounds(Struct, frozen=True, forbid_unknown_fields=True):
    """How long one call of a port may take.

    `operations_seconds` is for policy, API keys, audit and reports; `bus_seconds` for confirmations of cores;
    `events_seconds` for events that are published.
    """

    store_seconds: Seconds
    ledger_seconds: Seconds
    core_seconds: Seconds
    operations_seconds: Seconds
    bus_seconds: Seconds
    events_seconds: Seconds
    rate_limiter_seconds: Seconds


class RateLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """The token bucket of each user and each API key."""

    per_minute: Count
    burst: Count


class Issuer(Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer of tokens; `keys_file` (a JWKS) is given relative to the settings file, and exists."""

    issuer: Annotated[str, Meta(min_length=1, max_length=512)]
    keys_file: Annotated[str, Meta(min_length=1)]
    audience: Annotated[str, Meta(min_length=1, max_length=512)] = "internal-transfer"


class Secrets(Struct, frozen=True):
    """Secrets from the environment; empty for systems that are not used."""

    postgres_url: str = ""
    redis_url: str = ""
    kafka_password: str = ""
    cql_password: str = ""

    def __repr__(self) -> str:
        """The names alone, so that no log leaks a value."""
        return f"Secrets({', '.join(name for name, value in asdict(self).items() if value)})"


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that is configured; `tiers` are the names that a token may contain."""

    rules: Rules
    tiers: frozenset[str]
    server: Server
    transfers: Transfers
    scanner: Scanner
    retries: Retries
    alerts: Alerts
    bounds: PortBounds
    rate_limit: RateLimit
    issuers: tuple[Issuer, ...]
    systems: Systems
    postgresql: PostgresqlSystem
    cassandra: CassandraSystem
    tigerbeetle: TigerBeetleSystem
    ledger_socket: LedgerSocket
    kafka: KafkaSystem
    aeron: AeronSystem
    valkey: ValkeySystem
    secrets: Secrets


def fingerprint(settings: Settings) -> str:
    """Returns a hash of all settings but the secrets, equal for processes that are configured alike."""
    issuers = tuple(replace(issuer, keys_file=str(Path(issuer.keys_file).resolve())) for issuer in settings.issuers)
    shown = replace(settings, issuers=issuers, secrets=Secrets())
    return sha256(msgspec.json.encode(shown, order="deterministic")).hexdigest()
