"""`serve`: runs the service until it is told to stop."""

import signal
import socket
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internal_transfer.cli.exits import FAILED, failures_end
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.lifeline import tie
from internal_transfer.settings.load import load
from internal_transfer.simulation.failpoints import Failpoint, Failpoints
from internal_transfer.telemetry import configure_logging

if TYPE_CHECKING:
    from internal_transfer.wiring.service import Role
    from internal_transfer.wiring.stack import Interposed

LEDGER = "ledger"
"""The role that a process has alone."""


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    *,
    config: Annotated[
        Path | None, typer.Option(help="Settings (TOML) that override the shipped ones.", dir_okay=False)
    ] = None,
    data: Annotated[Path, typer.Option(help="The data directory; created if missing.", file_okay=False)] = Path("data"),
    host: Annotated[str, typer.Option(help="The address for users.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port for users; 0 picks a free one.", min=0, max=65_535)] = 8080,
    admin_port: Annotated[
        int, typer.Option(help="The port for health and metrics, on loopback; 0 picks a free one.", min=0, max=65_535)
    ] = 9464,
    demo: Annotated[bool, typer.Option("--demo", help="Demo data and tokens; loopback only.")] = False,
    roles: Annotated[
        str,
        typer.Option(
            help="What this process does: gateway,settler,scanner,courier or some of them (default: all); or ledger."
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(help="The number of HTTP workers; overrides server.http_workers.", min=0, max=64),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Run this many equal processes on one port, on a store that they share.", min=1, max=64),
    ] = None,
    inherit: Annotated[str | None, typer.Option(hidden=True)] = None,
    failpoint: Annotated[
        Failpoint | None, typer.Option(help="Kill this process at the named step of a transfer; only with --demo.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="The least severe level that is logged.")] = LogLevel.INFO,
) -> None:
    """Run the service. Prints one line when it is ready; logs go to standard error."""
    if failpoint is not None and not demo:
        raise typer.BadParameter("works only with --demo", param_hint="--failpoint")
    # The whole service is slow to import, and no other command needs it.
    from internal_transfer.hosts.ledger.process import run_ledger  # noqa: PLC0415
    from internal_transfer.server.fleet import FleetOptions, serve_fleet  # noqa: PLC0415
    from internal_transfer.server.http import run_on_uvloop  # noqa: PLC0415
    from internal_transfer.server.process import ServeOptions  # noqa: PLC0415
    from internal_transfer.server.process import serve as run  # noqa: PLC0415

    configure_logging(level=log_level)
    with failures_end():
        if roles == LEDGER:
            if processes is not None:
                raise typer.BadParameter("the ledger is one process", param_hint="--processes")
            run_on_uvloop(run_ledger(data, admin_port=admin_port))
            return
        chosen = _roles(roles)
        if processes is not None:
            if load(config).systems.is_alone:
                raise StartRefusedError(
                    'systems.store: is "embedded", which only one process can use; --processes needs a store that '
                    "processes share (--workers sets the number of HTTP workers of the one process)"
                )
            passed_on = ["--log-level", log_level, "--roles", ",".join(sorted(chosen))]
            passed_on += ["--config", str(config)] if config is not None else []
            passed_on += ["--workers", str(workers)] if workers is not None else []
            passed_on += ["--demo"] if demo else []
            fleet = FleetOptions(processes, data, host, port, admin_port, demo, passed_on)
            run_on_uvloop(serve_fleet(fleet))
            return
        options = ServeOptions(
            config=config,
            data=data,
            host=host,
            port=port,
            admin_port=admin_port,
            demo=demo,
            roles=chosen,
            http_workers=workers,
            listener=None if inherit is None else _inherited(inherit),
            interpose=None if failpoint is None else lambda durability: _interposed(failpoint, durability),
        )
        run_on_uvloop(run(options))


def _roles(words: str) -> "frozenset[Role]":
    from internal_transfer.wiring.service import ROLES, Role  # noqa: PLC0415 - as above.

    if not words:
        return ROLES
    try:
        return frozenset(Role(word.strip()) for word in words.split(","))
    except ValueError as error:
        names = ", ".join(sorted(ROLES))
        raise typer.BadParameter(
            f"must be one or more of {names}, separated by commas", param_hint="--roles"
        ) from error


def _inherited(words: str) -> socket.socket | None:
    """Returns the listening socket of the process that started this one, and ends this one when that one dies."""
    parent, listener = map(int, words.split(":"))
    if not tie(parent, signal.SIGTERM):
        raise typer.Exit(FAILED)
    inherited = socket.socket(fileno=listener)
    inherited.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
    return inherited


def _interposed(failpoint: Failpoint, durability: Durability) -> "Interposed":
    from internal_transfer.wiring.stack import Interposed  # noqa: PLC0415 - as above.

    points = Failpoints(failpoint, durability)
    return Interposed(store=points.wrap_store, ledger=points.wrap_ledger, core=points.wrap_core)
