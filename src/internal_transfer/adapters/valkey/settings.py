"""How Valkey or Redis is reached: a server or a cluster."""

from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct
from valkey.asyncio import Valkey, ValkeyCluster

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.tls import TlsFiles

NO_FILES = TlsFiles()
PREFIX = "internal-transfer:rate:"

_TLS_SCHEMES = frozenset({"rediss", "valkeys"})
_SCHEMES = frozenset({"redis", "valkey"}) | _TLS_SCHEMES
_FORM = "valkey[s]://user:password@host:6379/0?cluster=true&prefix=name:"


class ValkeySettings(Struct, frozen=True, kw_only=True):
    """How the buckets are reached. `deadline_seconds` bounds a call, including the wait for a connection.

    For a cluster, `host` and `port` name any of its servers. Every key begins with `prefix`.
    """

    host: str
    port: int = 6379
    username: str | None = None
    password: str | None = None
    database: int = 0
    cluster: bool = False
    tls: TlsFiles | None = None
    prefix: str = PREFIX
    deadline_seconds: float = 0.5
    connections_max: int = 8

    @classmethod
    def of_url(cls, url: str, *, files: TlsFiles = NO_FILES, is_encrypted: bool = False) -> Self:
        """Returns the settings in a URL such as `valkey://user:password@host:6379/0?cluster=true&prefix=name:`.

        `redis://` means the same. `valkeys://`, `rediss://` and `is_encrypted` mean TLS with `files`. Everything but
        the host may be left out. Raises `StartRefusedError`, which does not show the URL because it holds a password.
        """
        try:
            parts = urlsplit(url)
            port, database = parts.port, int(parts.path.strip("/") or "0")
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise StartRefusedError(f"the URL of Valkey cannot be read; its form is {_FORM}") from None
        cluster, prefix = options.pop("cluster", "false"), options.pop("prefix", PREFIX)
        is_known = parts.scheme in _SCHEMES and cluster in {"true", "false"} and not options and not parts.fragment
        if not is_known or not parts.hostname or database < 0:
            raise StartRefusedError(f"the URL of Valkey is not of the form {_FORM}")
        return cls(
            host=parts.hostname,
            port=6379 if port is None else port,
            username=None if not parts.username else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            database=database,
            cluster=cluster == "true",
            tls=files if is_encrypted or parts.scheme in _TLS_SCHEMES else None,
            prefix=prefix,
        )

    @property
    def address(self) -> str:
        """The address, for messages."""
        return f"valkey{'s' if self.tls else ''}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"ValkeySettings({self.address}, username={self.username!r}, prefix={self.prefix!r})"

    def client(self) -> Valkey | ValkeyCluster:
        """Returns a client, which connects when first used; it sends nothing twice, as that could take tokens twice."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "username": self.username,
            "password": self.password,
            "max_connections": self.connections_max,
            # Calls are bounded by their caller; these must only not be shorter.
            "socket_timeout": self.deadline_seconds,
            "socket_connect_timeout": self.deadline_seconds,
        }
        if self.tls is not None:
            options |= {
                "ssl": True,
                "ssl_check_hostname": True,
                "ssl_ca_certs": self.tls.ca_file or None,
                "ssl_certfile": self.tls.cert_file or None,
                "ssl_keyfile": self.tls.key_file or None,
            }
        if self.cluster:
            return ValkeyCluster(cluster_error_retry_attempts=1, connection_error_retry_attempts=0, **options)
        return Valkey(db=self.database, **options)
