"""The core's process: its directory, its database, its signals."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.write_ahead_log import keep_log_short
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.hosts.core.host import CoreHost, HostState
from internal_transfer.hosts.core.steering import steering_app
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.server.http import HttpServer
from internal_transfer.server.sockets import listen_owner_only
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.settings import Settings
from internal_transfer.wiring.connections import aeron_connection, kafka_connection

_log = structlog.get_logger(__name__)

READY_POLL_SECONDS = 0.05


class Transport(Protocol):
    """What brings orders and questions to the host and takes its verdicts and answers away."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop; raises `Unavailable` or `StartRefusedError` where it cannot begin."""
        ...

    def state(self) -> HostState:
        """For readiness."""
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
        try:
            await _run(options, directory, database)
        finally:
            database.close()
    finally:
        directory.release()


async def _run(options: CoreOptions, directory: DataDirectory, database: Database) -> None:
    clock = SystemClock()
    host = CoreHost(database, clock=clock)
    transport = options.connect(host, clock)
    steering: HttpServer | None = None
    if options.demo:
        listener = listen_owner_only(directory.admin_socket)
        steering = HttpServer(steering_app(host.core, clock), listener, clock=clock)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(keep_log_short(database, clock)),
                tasks.create_task(_tell_when_ready(transport, options.on_ready, clock)),
            ]
            if steering is not None:
                tasks.create_task(steering.run_until_stopped())
            await transport.run(stop)
            if steering is not None:
                steering.stop()
            for task in beside:
                task.cancel()
    except ExceptionGroup as failed:
        if len(failed.exceptions) == 1:
            raise failed.exceptions[0] from None
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    _log.info("core_stopped")


async def _tell_when_ready(transport: Transport, tell: Callable[[], None], clock: Clock) -> None:
    while not transport.state().ready:
        await clock.sleep(READY_POLL_SECONDS)
    _log.info("core_ready")
    tell()


def _report(failure: OperatingFailureError) -> None:
    _log.error("core_database_failed", error=str(failure))


def connect_kafka(settings: Settings) -> Callable[[CoreHost, Clock], Transport]:
    """Makes the transport over Kafka; raises `StartRefusedError` where its client is not installed."""
    connection = kafka_connection(settings)
    from internal_transfer.adapters.kafka.topics import Topics  # noqa: PLC0415
    from internal_transfer.hosts.core.kafka import KafkaCoreHost  # noqa: PLC0415

    topics = Topics(settings.kafka.prefix)
    return lambda host, clock: KafkaCoreHost(host, connection, topics, clock=clock)


def connect_aeron(settings: Settings) -> Callable[[CoreHost, Clock], Transport]:
    """Makes the transport over Aeron; raises `StartRefusedError` where its client is not installed."""
    from internal_transfer.hosts.core.aeron import AeronCoreHost  # noqa: PLC0415

    connection = aeron_connection(settings)
    return lambda host, clock: AeronCoreHost(host, connection, clock=clock)
