"""`doctor`: checks everything that the service needs, changes nothing, and says what to do."""

import asyncio
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.cli.connection import ask_holder
from internal_transfer.cli.exits import FAILED
from internal_transfer.cli.output import print_findings, print_json
from internal_transfer.domain.identifier import EPOCH_MS
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.finding import Finding
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.settings.pins import check_pins, pins
from internal_transfer.settings.settings import fingerprint
from internal_transfer.telemetry import configure_logging
from internal_transfer.wiring.examining import examine_database

PYTHON_LEAST = (3, 11)
FREE_BYTES_LEAST = 1 << 30
AHEAD_SECONDS_MAX = 5.0
"""How far files may be ahead of the clock; after a larger backward step no ids are drawn."""

_CONNECT_SECONDS = 2.0


class Patient(Struct, frozen=True):
    """What is examined."""

    data: Path
    config: Path | None
    host: str
    port: int
    admin_port: int
    server: dict[str, Any] | None = None
    """What the server that holds the directory says about itself."""
    silence: str | None = None
    """Why it does not answer, if it should."""

    @property
    def directory(self) -> DataDirectory:
        """The data directory, not acquired."""
        return DataDirectory(self.data)

    @property
    def holds_ledger(self) -> bool:
        """Returns whether a process of the role `ledger` holds the directory; it has no socket for operators."""
        directory = self.directory
        return directory.is_held and directory.ledger_socket.exists() and not directory.admin_socket.exists()


def doctor(
    *,
    data: Annotated[Path, typer.Option(help="The data directory.", file_okay=False)] = Path("data"),
    config: Annotated[Path | None, typer.Option(help="The server's settings (TOML).", dir_okay=False)] = None,
    host: Annotated[str, typer.Option(help="The address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port for users.", min=0, max=65_535)] = 8080,
    admin_port: Annotated[int, typer.Option(help="The port for health and metrics.", min=0, max=65_535)] = 9464,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check the machine, the settings and the data directory. Exits with 1 if something is wrong.

    If a server holds the directory, it is asked for its ports and settings, and whether it is ready.
    """
    configure_logging(level="error")
    findings = examine(Patient(data, config, host, port, admin_port))
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "checks": [finding._asdict() for finding in findings]})
    else:
        print_findings(findings)
    if not ok:
        raise typer.Exit(FAILED)


def examine(patient: Patient) -> list[Finding]:
    """Makes all checks, in the order in which a start would fail on them."""
    patient = _ask_server(patient)
    looks: dict[str, Callable[[Patient], str]] = {
        "python": _python,
        "sqlite": lambda patient: examine_database(patient.directory).release(),
        "settings": _settings,
        "directory": _directory,
        "lock": _lock,
        "server": _server,
        "database": lambda patient: examine_database(patient.directory).state(),
        "pins": _pins,
        "port": lambda patient: _port(patient, patient.host, patient.port),
        "admin_port": lambda patient: _port(patient, "127.0.0.1", patient.admin_port),
        "clock": _clock,
        "disk": _disk,
    }
    findings = []
    for name, look in looks.items():
        try:
            findings.append(Finding(name, True, look(patient)))
        except (StartRefusedError, OSError) as error:
            findings.append(Finding(name, False, str(error)))
    return findings + _systems(patient)


def _systems(patient: Patient) -> list[Finding]:
    """Checks the systems that the settings name; none if everything is embedded, or the settings are wrong."""
    # Their clients are slow to import, and most installations use none.
    from internal_transfer.wiring.examining import check_systems  # noqa: PLC0415

    try:
        settings = load(patient.config)
    except StartRefusedError:
        return []
    return asyncio.run(check_systems(settings))


def _python(_: Patient) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON_LEAST:
        raise StartRefusedError(f"{version} is too old; use {'.'.join(map(str, PYTHON_LEAST))} or later")
    return version


def _settings(patient: Patient) -> str:
    settings = load(patient.config)
    rules = settings.rules
    source = "the shipped settings" if patient.config is None else str(patient.config)
    server = patient.server
    if server is not None and server["settings"] != fingerprint(settings):
        started_with = f"--config {server['config']}" if server["config"] else "no --config"
        raise StartRefusedError(
            f"{source}: the server runs with other settings; it was started with {started_with}: give the same "
            "here, or restart the server if the file has changed since"
        )
    return f"{source}: {len(rules.assets)} assets, {len(rules.account_types)} account types, {len(rules.routes)} routes"


def _directory(patient: Patient) -> str:
    path = patient.data
    if not path.exists():
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise StartRefusedError(
                f"{path} does not exist and cannot be created in {above}; give --data another directory"
            )
        return f"{path} does not exist yet; the first start creates it"
    status = path.stat()
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartRefusedError(f"{path} cannot be written to by this user")
    if status.st_uid != os.geteuid():
        raise StartRefusedError(f"{path} belongs to another user ({status.st_uid}); run as that user, or chown it")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StartRefusedError(f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}); chmod 700 it")
    return f"{path} is writable, and only by its owner"


def _lock(patient: Patient) -> str:
    directory = patient.directory
    if not directory.is_held:
        return "free: no server holds the directory"
    holder = (patient.data / "lock").read_text(errors="replace").strip() or "unknown"
    if patient.holds_ledger:
        return f"held by the ledger process ({holder})"
    if not directory.admin_socket.exists():
        raise StartRefusedError(
            f"held by process {holder}, which has no admin socket: it is starting, stopping, or stuck"
        )
    return f"held by a server (process {holder})"


def _ask_server(patient: Patient) -> Patient:
    """Replaces the assumed ports with what the server says about itself, if one runs."""
    try:
        if not patient.directory.is_held or patient.holds_ledger:
            return patient
        told = ask_holder(patient.directory, "/server")
    except StartRefusedError as error:
        return replace(patient, silence=str(error))
    return replace(patient, host=told["host"], port=told["port"], admin_port=told["admin_port"], server=told)


def _server(patient: Patient) -> str:
    server = patient.server
    if patient.silence is not None:
        raise StartRefusedError(patient.silence)
    if patient.holds_ledger:
        return f"the ledger process serves {patient.directory.ledger_socket}"
    if server is None:
        return "no server runs on the directory"
    what = f"release {server['version']}{', a demonstration' if server['demo'] else ''}"
    if not server["ready"]:
        raise StartRefusedError(f"{what}: running, but not ready: {server['reason']}")
    return f"{what}: ready on {server['host']}:{server['port']}"


def _pins(patient: Patient) -> str:
    pinned = examine_database(patient.directory).pins()
    if pinned is None:
        return "nothing is pinned yet"
    check_pins(pins(load(patient.config)), pinned)
    return f"{len(pinned)} pinned values, all as in the settings"


def _port(patient: Patient, host: str, port: int) -> str:
    if port == 0:
        return "0 picks a free one"
    if patient.holds_ledger:
        return "not checked: the process that holds the directory serves no users"
    if patient.directory.is_held:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise StartRefusedError(f"the server runs, but {host}:{port} does not answer: {error}") from error
        return f"{host}:{port} answers"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartRefusedError(f"{host}:{port} cannot be used: {error.strerror}; choose another port") from error
    return f"{host}:{port} is free"


def _clock(patient: Patient) -> str:
    # A command runs outside the service, where there is no simulation and so no clock to pass in.
    now = time.time()  # noqa: TID251
    if now * 1000 < EPOCH_MS:
        raise StartRefusedError("the clock is before 2025; set it, and keep it set with NTP")
    database = patient.directory.database
    ahead = database.stat().st_mtime - now if database.exists() else 0.0
    if ahead > AHEAD_SECONDS_MAX:
        raise StartRefusedError(f"the clock is {ahead:.0f} s behind the database's last write; set it")
    return "plausible"


def _disk(patient: Patient) -> str:
    place = patient.data.absolute()
    place = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES_LEAST:
        raise StartRefusedError(f"only {free >> 20} MiB are free; make room for at least {FREE_BYTES_LEAST >> 20}")
    return f"{free >> 20} MiB are free"
