"""How PostgreSQL is reached."""

import re
from urllib.parse import urlsplit

from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError

CONNECT_SECONDS = 5.0
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


class PostgresqlSettings(Struct, frozen=True, kw_only=True):
    """Where the database is and how much of it one process uses; neither password nor URL is in its repr.

    `url`: `postgresql://user@host:5432/database`. Several hosts are separated by commas, and the one that accepts
    writes is used; `sslmode`, `sslrootcert`, `sslcert` and `sslkey` may follow as its query, as in libpq. `password`
    comes from the environment. `connections` is for one process: few are faster than many, since each commit carries a
    whole batch. At most `waiting_max` calls wait for a connection; any more are refused at once. `deadline_seconds`
    limits one call including the wait for a connection; the server cancels a statement after half of it. `pooled` says
    that PgBouncer in transaction mode is in between, so that no parameter can be set for a session.
    """

    url: str
    password: str | None = None
    schema: str = "internal_transfer"
    connections: int = 6
    waiting_max: int = 256
    deadline_seconds: float = 10.0
    connect_seconds: float = CONNECT_SECONDS
    pooled: bool = False

    def __post_init__(self) -> None:
        if _SCHEMA.fullmatch(self.schema) is None:
            raise StartRefusedError(f"postgresql schema {self.schema!r}: use lower-case letters, digits and _")
        if self.connections < 1 or self.waiting_max < 0:
            raise StartRefusedError("postgresql: connections must be at least 1, and waiting_max at least 0")
        if not 0 < self.connect_seconds <= self.deadline_seconds:
            raise StartRefusedError("postgresql: connect_seconds must be above 0 and not above deadline_seconds")
        if not self.url.startswith(("postgresql://", "postgres://")):
            raise StartRefusedError("postgresql: the url must start with postgresql://")

    def __repr__(self) -> str:
        return f"PostgresqlSettings(place={self.place!r}, schema={self.schema!r}, connections={self.connections})"

    @property
    def place(self) -> str:
        """The hosts and the database, for messages."""
        parts = urlsplit(self.url)
        return parts.netloc.rpartition("@")[2] + parts.path
