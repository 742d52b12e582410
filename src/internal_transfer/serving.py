"""The server process: the service with its three doors - users, health, operators - from start to clean stop."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path

import structlog
from msgspec.structs import replace
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from internal_transfer.adapters.clock.system import SystemClock
from internal_transfer.api.admin import DescribeServer, create_admin_app
from internal_transfer.api.admin_views import ServerState
from internal_transfer.api.authentication import Authenticator, TrustedIssuer
from internal_transfer.api.demo_issuer import DemoIssuer
from internal_transfer.api.health import create_health_app
from internal_transfer.api.okx import okx_routes
from internal_transfer.api.okx_signature import Signatures
from internal_transfer.api.routes import create_app
from internal_transfer.api.server import Bounds, HttpServer, calm_collector, listen
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.embedded.directory import DataDirectory
from internal_transfer.ledger_host.server import serve_ledger as host_ledger
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.services.cash import Cash
from internal_transfer.settings import Settings, fingerprint, load
from internal_transfer.stack import open_stack
from internal_transfer.telemetry import Telemetry
from internal_transfer.trust import trusted_issuers
from internal_transfer.wiring import ROLES, Interposed, Role, Service, build
from internal_transfer.workers import Workers

OPERATOR = "operator"
ADMIN_PREFIX = "/api/v1/admin"
DEMO_BALANCES = {"USDT": "10000", "BTC": "1.5", "ETH": "20", "EUR": "5000"}
DEMO_USERS = ("alice", "bob", "carol")
PORT_SECONDS = 2.0
"""How long a port is waited for: the workers of a server that was killed may outlive it for a moment."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line says about a server; port 0 picks a free one, and a `listener` that is given is used."""

    data: Path = Path("data")
    config: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 9464
    demo: bool = False
    roles: frozenset[Role] = ROLES
    http_workers: int | None = None
    listener: socket.socket | None = None
    interpose: Callable[[Durability], Interposed] | None = None


class ServiceFailedError(Exception):
    """A part of the running service failed for good, and all of it has ended; the log has the whole story."""


async def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what it accepted.

    Prints, on standard output, a `curl` line where it is a demonstration, and one line when it is ready. Raises
    `StartRefusedError` where it cannot start, saying what to do, and `ServiceFailedError` where it cannot go on.
    """
    if options.demo and not _is_loopback(options.host):
        raise StartRefusedError(f"--demo gives everybody tokens, so it binds loopback only, not {options.host}")
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
        raise _reason(failed) from None


async def serve_ledger(options: ServeOptions) -> None:
    """Serves the embedded ledger of the data directory to other processes on this host, until SIGTERM or SIGINT.

    This is the role `ledger`, which a process has alone. Raises `StartRefusedError`.
    """
    directory, clock, telemetry = DataDirectory(options.data), SystemClock(), Telemetry()
    directory.acquire()
    try:
        health_listener = await _listen_when_free("127.0.0.1", options.admin_port, clock, option="--admin-port")
        stop, ready = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

        async def unready() -> str | None:
            return None if ready.is_set() else "the ledger is starting"

        def announce() -> None:
            ready.set()
            port = health_listener.getsockname()[1]
            print(f"internal-transfer is ready on {directory.ledger_socket} (health: port {port})", flush=True)  # noqa: T201

        health = create_health_app(readiness=unready, registry=telemetry.registry)
        door = HttpServer(health, health_listener, clock=clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(door.run_until_stopped())
            await host_ledger(directory, stop, clock=clock, ready=announce)
            door.stop()
    except ExceptionGroup as failed:
        raise _reason(failed) from None
    finally:
        directory.release()


@asynccontextmanager
async def open_service(
    settings: Settings,
    data: Path,
    roles: frozenset[Role] = ROLES,
    *,
    interpose: Callable[[Durability], Interposed] | None = None,
) -> AsyncIterator[Service]:
    """The service on a data directory that nobody else holds; raises `StartRefusedError`."""
    directory = DataDirectory(data)
    directory.acquire()
    try:
        clock, telemetry = SystemClock(), Telemetry()
        settles = Role.SETTLER in roles
        async with open_stack(settings, directory, clock=clock, telemetry=telemetry, settles=settles) as stack:
            yield build(settings, directory, stack, clock=clock, telemetry=telemetry, roles=roles, interpose=interpose)
    finally:
        directory.release()


async def _serve(options: ServeOptions, settings: Settings, service: Service) -> None:
    if not options.demo:
        # A start that is refused for lack of an issuer shall not decide what the directory is for.
        trusted_issuers(settings, options.data, demo=False)
    await service.prepare(demo=options.demo)
    issuers = trusted_issuers(settings, options.data, demo=options.demo)
    if options.demo:
        await _give_demo_balances(service)
    bounds = Bounds(
        request_seconds=settings.server.receive_deadline_seconds, connections_most=settings.server.connections_max
    )
    listener = options.listener
    if listener is None and Role.GATEWAY in options.roles:
        listener = await _listen_when_free(options.host, options.port, service.clock, option="--port")
    health_listener = await _listen_when_free("127.0.0.1", options.admin_port, service.clock, option="--admin-port")
    port = 0 if listener is None else listener.getsockname()[1]
    admin_port = health_listener.getsockname()[1]

    async def unready() -> str | None:
        return workers.unready() or await service.unready()

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

    app = _public_app(service, settings, issuers, demo=options.demo, state=state)
    workers = Workers(listener, service, app, issuers)
    doors = _operators_doors(service, health_listener, unready, state, demo=options.demo, bounds=bounds)
    own_door = None
    if listener is not None and not workers.count:
        own_door = HttpServer(app, listener, clock=service.clock, bounds=bounds)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    calm_collector()
    async with asyncio.TaskGroup() as tasks:
        drained = asyncio.Event()
        tasks.create_task(service.run(drained))
        for_operators = [tasks.create_task(door.run_until_stopped()) for door in doors]
        for_users = workers.start(tasks)
        if own_door is not None:
            for_users.append(tasks.create_task(own_door.run_until_stopped()))
        starting = tasks.create_task(workers.ready())
        stopping = tasks.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            _announce(options, service, port, admin_port=admin_port, workers=workers.count)
        await stopping
        starting.cancel()
        _log.info("stopping")
        workers.stop()
        if own_door is not None:
            own_door.stop()
        if for_users:
            await asyncio.wait(for_users)
        # Health and metrics show the way to the end; so the operators' doors close after the users'.
        for door in doors:
            door.stop()
        await asyncio.wait(for_operators)
        drained.set()
    _log.info("stopped")


def _operators_doors(
    service: Service,
    health_listener: socket.socket,
    unready: Callable[[], Awaitable[str | None]],
    state: DescribeServer,
    *,
    demo: bool,
    bounds: Bounds,
) -> list[HttpServer]:
    health = create_health_app(readiness=unready, registry=service.telemetry.registry)
    desk = _admin_app(service, demo=demo, state=state)
    own = _listen_owner_only(service.directory)
    return [
        HttpServer(app, listener, clock=service.clock, bounds=bounds)
        for app, listener in ((health, health_listener), (desk, own))
    ]


def _announce(options: ServeOptions, service: Service, port: int, *, admin_port: int, workers: int) -> None:
    if options.demo and port:
        print(_curl(service, options, port), flush=True)  # noqa: T201
    roles = ", ".join(sorted(options.roles))
    where = f"http://{options.host}:{port}" if port else f"http://127.0.0.1:{admin_port} (health; roles: {roles})"
    print(f"internal-transfer is ready on {where}", flush=True)  # noqa: T201
    _log.info("ready", port=port, admin_port=admin_port, data=str(options.data), workers=workers, roles=roles)


def _reason(failed: ExceptionGroup) -> Exception:
    """What ended the service: why it must not start, or else what the log is told about every part that failed."""
    refused, others = failed.split(StartRefusedError)
    if refused is not None:
        return next(_leaves(refused))
    assert others is not None, "a group is not empty"
    causes = list(_leaves(others))
    for cause in causes:
        _log.error("service_failed", error=repr(cause), exc_info=cause)
    return ServiceFailedError(f"the service failed and has ended: {causes[0]!r}; the log has more")


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _listen_when_free(host: str, port: int, clock: Clock, *, option: str) -> socket.socket:
    """Listens as soon as the port is free, which it has to be within `PORT_SECONDS`; raises `StartRefusedError`,
    naming the command line's option for another port.
    """
    ends = clock.monotonic() + PORT_SECONDS
    while True:
        try:
            return listen(host, port)
        except StartRefusedError as error:
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not in_use:
                raise
            if clock.monotonic() >= ends:
                variable = option.removeprefix("--").replace("-", "_").upper()
                raise StartRefusedError(
                    f"{error}, or give another port: {option} N, or make run {variable}=N (0 picks a free one)"
                ) from error
        await clock.sleep(0.02)


@asynccontextmanager
async def open_offline(data: Path, config: Path | None) -> AsyncIterator[ASGIApp]:
    """The operators' application without a server, on a directory that nobody else holds.

    Raises `StartRefusedError`, also where the directory does not exist yet: there is nothing to operate on.
    """
    if not DataDirectory(data).database.exists():
        raise StartRefusedError(f"{data}: holds no data yet; give --data the directory of a server")
    # Without the role of settling: what is on its way to those who settle stays theirs.
    async with open_service(load(config), data, frozenset({Role.GATEWAY})) as service:
        await service.prepare(demo=None)
        yield _admin_app(service, demo=False, state=None)


def _public_app(
    service: Service, settings: Settings, issuers: list[TrustedIssuer], *, demo: bool, state: DescribeServer
) -> ASGIApp:
    """The users' application, with the operators' routes for tokens that carry their role."""
    authenticator = Authenticator(issuers, service.clock)
    users = create_app(
        rules=settings.rules,
        gateway=service.gateway,
        inquiry=service.inquiry,
        authenticator=authenticator,
        clock=service.clock,
        telemetry=service.telemetry,
        pages=okx_routes(
            rules=settings.rules,
            gateway=service.gateway,
            inquiry=service.inquiry,
            signatures=Signatures(service.api_keys, service.clock),
            clock=service.clock,
            telemetry=service.telemetry,
            wait_seconds=settings.transfers.wait_seconds,
            deadline_seconds=settings.transfers.deadline_seconds,
        ),
        wait_seconds=settings.transfers.wait_seconds,
        deadline_seconds=settings.transfers.deadline_seconds,
    )

    def actor_of(request: Request) -> str | Refusal:
        header = request.headers.get("authorization")
        caller = authenticator.authenticate(None if header is None else header.encode("latin-1"))
        if isinstance(caller, Refusal):
            return caller
        if OPERATOR not in caller.roles:
            return Refusal(Code.PERMISSION_DENIED, "the token does not carry the role operator")
        return caller.owner

    operators = _admin_app(service, demo=demo, state=state, actor_of=actor_of)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_operators = scope["path"].startswith(ADMIN_PREFIX)
        await (operators if is_operators else users)(scope, receive, send)

    return app


def _admin_app(
    service: Service,
    *,
    demo: bool,
    state: DescribeServer | None,
    actor_of: Callable[[Request], str | Refusal] | None = None,
) -> ASGIApp:
    """The operators' application; without `actor_of` for whoever can open the socket, or the directory.

    `state` tells of the server, where there is one.
    """
    local = f"local:{os.getuid()}"

    return create_admin_app(
        desk=service.desk,
        cash=service.cash,
        reconciliation=service.reconciliation,
        policies=service.policy_desk,
        keys=service.api_keys,
        operations=service.stack.operations,
        audit=service.audit,
        durability=service.stack.durability,
        clock=service.clock,
        rules=service.settings.rules,
        actor_of=actor_of or (lambda _: local),
        set_core_mode=service.stack.set_core_mode if demo else None,
        describe_server=state,
    )


def _listen_owner_only(directory: DataDirectory) -> socket.socket:
    """The operators' socket; one left by a killed server is replaced, since the directory's lock is ours."""
    path = directory.admin_socket
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StartRefusedError(f"{path}: cannot be made: {error}; a shorter path of --data may help") from error
    finally:
        os.umask(before)
    listener.listen(64)
    listener.setblocking(False)  # noqa: FBT003 - the standard library takes it by position only.
    return listener


async def _give_demo_balances(service: Service) -> None:
    """Deposits the demo users' money; the references make it happen once per directory."""
    for user in DEMO_USERS:
        for asset, amount in DEMO_BALANCES.items():
            cash = Cash(
                account=Account(Owner(user), "funding", asset),
                amount=amount,
                reference=f"demo-{user}-{asset}",
                reason="balances of the demonstration",
            )
            answer = await service.cash.deposit(cash, actor="demo")
            if isinstance(answer, Refusal):
                _log.info("demo_balance_not_given", user=user, asset=asset, reason=answer.message)


def _curl(service: Service, options: ServeOptions, port: int) -> str:
    token = DemoIssuer.read(options.data).token(
        Owner(DEMO_USERS[0]), roles=("user",), tier="standard", now_seconds=service.clock.now_ms() // 1000
    )
    return (
        f"curl -s http://{options.host}:{port}/api/v1/user/internal_transfer"
        f" -H 'Authorization: Bearer {token}'"
        " -H 'Content-Type: application/json'"
        f" -H 'Idempotency-Key: first-{service.clock.now_ms()}'"
        ' -d \'{"from_account":{"account_type":"funding","asset":"USDT"},'
        '"to_account":{"account_type":"spot","asset":"USDT"},"amount":"1.5"}\''
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
