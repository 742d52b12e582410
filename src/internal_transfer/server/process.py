"""One server process, from start to clean stop: the service with its doors for users, health and operators."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path

import structlog
from msgspec.structs import replace
from starlette.types import ASGIApp

from internal_transfer.api.operators.views import ServerState
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.demo_users import first_call, give_demo_balances
from internal_transfer.server.doors import admin_app, operators_doors, public_app
from internal_transfer.server.http import Bounds, HttpServer, calm_collector
from internal_transfer.server.http_workers.pool import HttpWorkers
from internal_transfer.server.sockets import listen_when_free
from internal_transfer.server.supervisor import READY_LINE, reason_of, told_to_stop
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.load import load
from internal_transfer.settings.settings import Settings, fingerprint
from internal_transfer.settings.trust import trusted_issuers
from internal_transfer.wiring.roles import open_service
from internal_transfer.wiring.service import ROLES, Role, Service
from internal_transfer.wiring.stack import Interpose

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line says about a server; port 0 picks a free one, and a given `listener` replaces it."""

    data: Path = Path("data")
    config: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 9464
    demo: bool = False
    roles: frozenset[Role] = ROLES
    http_workers: int | None = None
    listener: socket.socket | None = None
    interpose: Interpose | None = None


async def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what it accepted.

    Prints one line on standard output when it is ready, in a demonstration after a `curl` line. Raises
    `StartRefusedError`, which says what to do, or `ServiceFailedError` if it cannot go on.
    """
    if options.demo and not _is_loopback(options.host):
        raise StartRefusedError(
            f"--demo is for trials on this machine, so it listens on loopback only, not {options.host}"
        )
    settings = load(options.config)
    if options.http_workers is not None:
        settings = replace(settings, server=replace(settings.server, http_workers=options.http_workers))
    if settings.systems.is_alone and options.roles != ROLES:
        raise StartRefusedError(
            'systems.store: is "embedded", which keeps all roles in one process; '
            "--roles needs a store that processes share"
        )
    try:
        async with open_service(settings, options.data, options.roles, interpose=options.interpose) as service:
            await _serve(options, settings, service)
    except ExceptionGroup as failed:
        raise reason_of(failed) from None


async def _serve(options: ServeOptions, settings: Settings, service: Service) -> None:
    if not options.demo:
        # Checked first: a start that is refused for lack of an issuer must not decide what the directory is for.
        trusted_issuers(settings, options.data, demo=False)
    await service.prepare(demo=options.demo)
    issuers = trusted_issuers(settings, options.data, demo=options.demo)
    if options.demo:
        await give_demo_balances(service)
    bounds = Bounds.of(settings.server)
    clock, listener = service.ports.clock, options.listener
    if listener is None and Role.GATEWAY in options.roles:
        listener = await listen_when_free(options.host, options.port, clock, option="--port")
    health_listener = await listen_when_free("127.0.0.1", options.admin_port, clock, option="--admin-port")
    port = 0 if listener is None else listener.getsockname()[1]
    admin_port = health_listener.getsockname()[1]

    async def unready() -> str | None:
        return workers.unready() or await service.readiness.unready()

    async def state() -> ServerState:
        reason = await unready()
        return ServerState(
            host=options.host,
            port=port,
            admin_port=admin_port,
            ready=reason is None,
            reason=reason,
            config=None if options.config is None else str(options.config.resolve()),
            settings=fingerprint(settings),
            demo=options.demo,
            version=version("internal-transfer"),
        )

    app = public_app(service, settings, issuers, demo=options.demo, state=state)
    doors = operators_doors(service, health_listener, unready, state, demo=options.demo, bounds=bounds)
    stop = told_to_stop()
    calm_collector()
    async with asyncio.TaskGroup() as tasks:
        workers = HttpWorkers(listener, service, app, issuers, tasks)
        drained = asyncio.Event()
        tasks.create_task(service.run(drained))
        for_operators = [tasks.create_task(door.run_until_stopped()) for door in doors]
        for_users = workers.start()
        own_door = None
        if listener is not None and not workers.count:
            own_door = HttpServer(app, listener, clock=service.ports.clock, bounds=bounds)
            for_users.append(tasks.create_task(own_door.run_until_stopped()))
        starting = tasks.create_task(_announce(options, service, workers, port=port, admin_port=admin_port))
        await stop.wait()
        starting.cancel()
        _log.info("stopping")
        workers.stop()
        if own_door is not None:
            own_door.stop()
        if for_users:
            await asyncio.wait(for_users)
        # Health and metrics are served to the end, so the operators' doors close after the users'.
        for door in doors:
            door.stop()
        await asyncio.wait(for_operators)
        drained.set()
    _log.info("stopped")


async def _announce(
    options: ServeOptions, service: Service, workers: HttpWorkers, *, port: int, admin_port: int
) -> None:
    await workers.ready()
    if options.demo and port:
        print(first_call(service, options.data, host=options.host, port=port), flush=True)  # noqa: T201
    roles = ", ".join(sorted(options.roles))
    where = f"http://{options.host}:{port}" if port else f"http://127.0.0.1:{admin_port} (health; roles: {roles})"
    print(f"{READY_LINE}{where}", flush=True)  # noqa: T201
    _log.info("ready", port=port, admin_port=admin_port, data=str(options.data), workers=workers.count, roles=roles)


@asynccontextmanager
async def open_offline(data: Path, config: Path | None) -> AsyncIterator[ASGIApp]:
    """Opens the operators' application without a server, on a directory that nobody else holds.

    Raises `StartRefusedError`, also if the directory does not exist yet: there is nothing to operate on.
    """
    if not DataDirectory(data).database.exists():
        raise StartRefusedError(f"{data}: holds no data yet; give --data the directory of a server")
    # Without the settler: confirmations on their way to the processes that settle stay theirs.
    async with open_service(load(config), data, frozenset({Role.GATEWAY})) as service:
        await service.prepare(demo=None)
        yield admin_app(service, demo=False, state=None)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
