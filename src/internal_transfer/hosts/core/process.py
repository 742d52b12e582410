"""The core's process: its directory, its database, its signals."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.write_ahead_log import keep_log_short
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.hosts.core.host import CoreHost, HostState
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.server.supervisor import told_to_stop
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.wiring.client_settings import aeron_connection, kafka_connection

_log = structlog.get_logger(__name__)

READY_POLL_SECONDS = 0.05


class Transport(Protocol):
    """Brings commands and queries to the host, and takes its verdicts and replies away."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop; raises `Unavailable` or `StartRefusedError` where it cannot start."""
        ...

    def state(self) -> HostState:
        """Whether commands are carried out, and if not, why."""
        ...


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """What the command line says about a core.

    `connect` makes the transport. With `demo`, the core can be steered over a socket in `data`. `on_ready` is called
    when the core carries out commands for the first time.
    """

    data: Path
    connect: Callable[[CoreHost, Clock], Transport]
    demo: bool = False
    on_ready: Callable[[], None] = lambda: None


async def run_core(options: CoreOptions) -> None:
    """Runs the reference core on its directory until SIGTERM or SIGINT.

    Raises `StartRefusedError` where it must not start, saying what to do, and `Unavailable` where its transport cannot
    be reached.
    """
    directory = DataDirectory(options.data)
    directory.acquire()
    try:
        database = Database(directory.database, on_failure=_report)
        directory.admin_socket.unlink(missing_ok=True)  # A demonstration that was killed may have left it.
        try:
            await _run(options, directory, database)
        finally:
            directory.admin_socket.unlink(missing_ok=True)
            database.close()
    finally:
        directory.release()


async def _run(options: CoreOptions, directory: DataDirectory, database: Database) -> None:
    clock = SystemClock()
    host = CoreHost(database, clock=clock)
    transport = options.connect(host, clock)
    beside = [keep_log_short(database, clock), _tell_when_ready(transport, options.on_ready, clock)]
    if options.demo:
        from internal_transfer.hosts.core.demo_modes import serve_modes  # noqa: PLC0415 - all of HTTP, for a demo.

        beside.append(serve_modes(host.core, directory.admin_socket, clock))
    stop = told_to_stop()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(each) for each in beside]
            await transport.run(stop)
            for task in running:
                task.cancel()
    except ExceptionGroup as failed:
        if len(failed.exceptions) == 1:
            raise failed.exceptions[0] from None
        raise
    _log.info("core_stopped")


async def _tell_when_ready(transport: Transport, tell: Callable[[], None], clock: Clock) -> None:
    while not transport.state().ready:
        await clock.sleep(READY_POLL_SECONDS)
    _log.info("core_ready")
    tell()


def _report(failure: OperatingFailureError) -> None:
    _log.error("core_database_failed", error=str(failure))


def connect_kafka(settings: Settings) -> Callable[[CoreHost, Clock], Transport]:
    """Returns what makes the transport over Kafka; raises `StartRefusedError` where the client is not installed."""
    connection = kafka_connection(settings)
    from internal_transfer.adapters.kafka.topics import Topics  # noqa: PLC0415
    from internal_transfer.hosts.core.kafka import KafkaCoreHost  # noqa: PLC0415

    topics = Topics(settings.kafka.prefix)
    return lambda host, clock: KafkaCoreHost(host, connection, topics, clock=clock)


def connect_aeron(settings: Settings) -> Callable[[CoreHost, Clock], Transport]:
    """Returns what makes the transport over Aeron; raises `StartRefusedError` where the client is not installed."""
    from internal_transfer.adapters.aeron.client import AeronClient  # noqa: PLC0415
    from internal_transfer.hosts.core.aeron import AeronCoreHost  # noqa: PLC0415

    connection = aeron_connection(settings)
    return lambda host, clock: AeronCoreHost(host, AeronClient(connection, clock=clock), clock=clock)
