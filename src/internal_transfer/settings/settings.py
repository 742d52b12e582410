"""The settings: what is configured, as frozen values. `settings/load.py` reads and checks them."""

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
    """The HTTP server: headers and bodies have to be complete within the deadline; connections are bounded.

    `http_workers` processes speak HTTP for the one that holds the service; 0 leaves all of it to that one, and without
    the key there is one for each further processor, up to three.
    """

    receive_deadline_seconds: Seconds
    connections_max: Count
    http_workers: Annotated[int, Meta(ge=0, le=64)] | None = None


class Transfers(Struct, frozen=True, forbid_unknown_fields=True):
    """How transfers are accepted and answered.

    An answer comes when the transfer is final, or after `wait_seconds` (a client may ask for up to
    20 s). The gateway gives up on a request after `deadline_seconds`; while it works, nobody else takes
    the transfer for `lease_seconds`. A transfer without a hold expires after `expiry_seconds`. When a core has owed an
    answer for `core_silence_seconds`, `open_max` transfers are open, or `queue_max` requests wait, new ones are shed.
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
    """How often due transfers are looked for, for how long they are leased, and how many at a time."""

    interval_seconds: Seconds
    lease_seconds: Seconds
    batch_max: Annotated[int, Meta(ge=1, le=2000)]


class Retries(Struct, frozen=True, forbid_unknown_fields=True):
    """The first and the longest pause between attempts; it doubles in between, with jitter."""

    first_seconds: Seconds
    longest_seconds: Seconds


class Alerts(Struct, frozen=True, forbid_unknown_fields=True):
    """From which age on an open transfer is stuck, alerted about, and critical."""

    stuck_seconds: Seconds
    alert_seconds: Seconds
    critical_seconds: Seconds


class RateLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """The token bucket of each user and API key."""

    per_minute: Count
    burst: Count


class Issuer(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may issue tokens; `keys_file` (a JWKS) is relative to the settings file and exists."""

    issuer: Annotated[str, Meta(min_length=1, max_length=512)]
    keys_file: Annotated[str, Meta(min_length=1)]
    audience: Annotated[str, Meta(min_length=1, max_length=512)] = "internal-transfer"


class Secrets(Struct, frozen=True):
    """What must not stand in a file; empty where the system is not used. Never shown in a representation."""

    postgres_url: str = ""
    redis_url: str = ""
    kafka_password: str = ""
    cql_password: str = ""

    def __repr__(self) -> str:
        """Names only, so that no log can leak a value."""
        return f"Secrets({', '.join(name for name, value in asdict(self).items() if value)})"


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that is configured; `tiers` are the names that a token may carry."""

    rules: Rules
    tiers: frozenset[str]
    server: Server
    transfers: Transfers
    scanner: Scanner
    retries: Retries
    alerts: Alerts
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
    """A hash of everything that is configured but secrets: two processes that have the same are configured alike."""
    issuers = tuple(replace(issuer, keys_file=str(Path(issuer.keys_file).resolve())) for issuer in settings.issuers)
    shown = replace(settings, issuers=issuers, secrets=Secrets())
    return sha256(msgspec.json.encode(shown, order="deterministic")).hexdigest()
