"""Where the buckets in Valkey are: a server or a cluster, and how a script is run there."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct
from valkey.asyncio import Connection, ConnectionPool, SSLConnection
from valkey.asyncio.cluster import ValkeyCluster
from valkey.exceptions import NoScriptError

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.tls import TlsFiles

NO_FILES = TlsFiles()
PREFIX = "internal-transfer:rate:"

_TLS_SCHEMES = frozenset({"rediss", "valkeys"})
_SCHEMES = frozenset({"redis", "valkey"}) | _TLS_SCHEMES
_FORM = "valkey[s]://user:password@host:6379/0?cluster=true&prefix=name:"


class ValkeySettings(Struct, frozen=True, kw_only=True):
    """How to get to the buckets. `deadline_seconds` bounds a call, with connecting and waiting for a connection.

    In a cluster, host and port are of any node of it. `prefix` begins every key.
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
        """The settings that `valkey://user:password@host:6379/0?cluster=true&prefix=name:` stands for.

        `redis://` is the same; `valkeys://` and `rediss://` mean TLS with `files`, as `is_encrypted` does. All but the
        host may be left out.
        Raises `StartRefusedError`, which shows nothing of the URL, since it holds a password.
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
        """The address, for people."""
        return f"valkey{'s' if self.tls else ''}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"ValkeySettings({self.address}, username={self.username!r}, prefix={self.prefix!r})"


class Script(Struct, frozen=True):
    """A Lua script and its SHA-1 digest, under which servers keep it."""

    text: str
    digest: str


class Evaluation(Struct, frozen=True):
    """The keys and the arguments of one run of a script."""

    keys: Sequence[bytes]
    arguments: Sequence[str]

    def command(self, name: str, script: str) -> tuple[str | bytes | int, ...]:
        """The command that runs the script, by its digest or its text."""
        return (name, script, len(self.keys), *self.keys, *self.arguments)


class Progress:
    """How far a call has come."""

    __slots__ = ("is_sent",)

    def __init__(self) -> None:
        self.is_sent = False


class Servers(Protocol):
    """A server, or a cluster of them. Raises the client's errors; `progress` tells whether something was sent."""

    async def evaluate(self, script: Script, runs: Sequence[Evaluation], progress: Progress) -> list[bytes]:
        """Runs a script, also where the server does not know it; answers in order."""
        ...

    async def info(self, progress: Progress) -> dict[str, str]:
        """What the server, or a node of the cluster, says about itself."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class Server:
    """Implements `Servers` with one server.

    Nothing is sent twice: the client's own retries could take a token twice.
    """

    def __init__(self, settings: ValkeySettings) -> None:
        self._pool = ConnectionPool(
            connection_class=SSLConnection if settings.tls else Connection,
            max_connections=settings.connections_max,
            db=settings.database,
            **_options(settings),
        )

    async def evaluate(self, script: Script, runs: Sequence[Evaluation], progress: Progress) -> list[bytes]:
        """See `Servers`; to one server everything goes in one run."""
        [run] = runs
        try:
            answer = await self._ask(run.command("EVALSHA", script.digest), progress)
        except NoScriptError:  # It was restarted, or told to forget its scripts; nothing was run.
            progress.is_sent = False
            answer = await self._ask(run.command("EVAL", script.text), progress)
        return [answer]

    async def info(self, progress: Progress) -> dict[str, str]:
        """See `Servers`."""
        return _parse_info(await self._ask(("INFO",), progress))

    async def close(self) -> None:
        """See `Servers`."""
        await self._pool.disconnect()

    async def _ask(self, command: Sequence[str | bytes | int], progress: Progress) -> Any:
        connection = await self._pool.get_connection(command[0])  # type: ignore[no-untyped-call]
        try:
            progress.is_sent = True
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            # A connection whose answer was not read to its end has closed itself, and opens again when it is used.
            await self._pool.release(connection)


class Cluster:
    """Implements `Servers` with a cluster, whose nodes the client finds by itself."""

    def __init__(self, settings: ValkeySettings) -> None:
        self._client = ValkeyCluster(
            max_connections=settings.connections_max,
            cluster_error_retry_attempts=1,
            connection_error_retry_attempts=0,
            ssl=settings.tls is not None,
            **_options(settings),
        )

    async def evaluate(self, script: Script, runs: Sequence[Evaluation], progress: Progress) -> list[bytes]:
        """See `Servers`; the keys of each run are of one hash slot."""
        answers = await self._pipeline([run.command("EVALSHA", script.digest) for run in runs], progress)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._pipeline([runs[index].command("EVAL", script.text) for index in unknown], progress)
            for index, answer in zip(unknown, again, strict=True):
                answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def info(self, progress: Progress) -> dict[str, str]:
        """See `Servers`."""
        await self._client.initialize()
        progress.is_sent = True
        return _parse_info(await self._client.execute_command("INFO", target_nodes=ValkeyCluster.RANDOM))

    async def close(self) -> None:
        """See `Servers`."""
        await self._client.aclose()

    async def _pipeline(self, commands: Sequence[Sequence[str | bytes | int]], progress: Progress) -> list[Any]:
        await self._client.initialize()
        progress.is_sent = True
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)


def _options(settings: ValkeySettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "username": settings.username,
        "password": settings.password,
        # The caller's deadline is what counts; the client's only has to be no shorter.
        "socket_timeout": settings.deadline_seconds,
        "socket_connect_timeout": settings.deadline_seconds,
    }
    if settings.tls is not None:
        options |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": settings.tls.ca_file or None,
            "ssl_certfile": settings.tls.cert_file or None,
            "ssl_keyfile": settings.tls.key_file or None,
        }
    return options


def _parse_info(answer: bytes | Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(answer, bytes):
        return {name: str(value) for name, value in answer.items()}
    pairs = (line.partition(":") for line in answer.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
