"""What an HTTP worker's process does, after `__main__` has tied it to the service.

It takes connections from the listening socket that it inherits, and sends what it cannot answer over the socket pair
that it inherits too. It dies with the service. When the service or a SIGTERM tells it to stop, it answers what it
accepted and ends.
"""

import asyncio
import os
import signal
import socket
import sys

import msgspec
import structlog
from msgspec import Struct

from internal_transfer.api.authentication import Authenticator
from internal_transfer.api.problems import Problems
from internal_transfer.api.submission import ApiContext, SubmissionApi
from internal_transfer.ports.clock import Clock
from internal_transfer.server.http import Bounds, HttpServer, calm_collector, run_on_uvloop
from internal_transfer.server.http_workers.worker_end import WorkerEnd
from internal_transfer.settings.settings import Settings
from internal_transfer.settings.trust import IssuerKeys, from_keys
from internal_transfer.telemetry import Telemetry, configure_logging
from internal_transfer.wiring.clock import system_clock

COUNTS_SECONDS = 0.25

_log = structlog.get_logger(__name__)


class Inheritance(Struct, frozen=True):
    """What the service tells a worker on its standard input, as JSON: settings and keys as it read them at its start.

    A worker that is started later must not differ from the service. The secrets among the settings are left out.
    """

    settings: Settings
    issuers: tuple[IssuerKeys, ...]


def run(listener_fd: int, pair_fd: int) -> int:
    """Runs a worker until the service is gone or asks it to stop; returns its exit code."""
    configure_logging()
    structlog.contextvars.bind_contextvars(process="http_worker", pid=os.getpid())
    try:
        inheritance = msgspec.json.decode(sys.stdin.buffer.read(), type=Inheritance)
        run_on_uvloop(_work(inheritance, socket.socket(fileno=listener_fd), socket.socket(fileno=pair_fd)))
    except Exception:  # noqa: BLE001 - the process's outermost level; the log says who it was.
        _log.exception("http_worker_failed")
        return 1
    return 0


async def _work(inheritance: Inheritance, listener: socket.socket, pair: socket.socket) -> None:
    settings = inheritance.settings
    loop = asyncio.get_running_loop()
    clock, telemetry = system_clock(), Telemetry()
    end = WorkerEnd(
        problems=Problems(clock),
        waiting_most=settings.server.connections_max,
        stop=lambda: server.stop(),  # noqa: PLW0108 - it comes later.
    )
    context = ApiContext.of(settings, clock, telemetry)
    authenticator = Authenticator(from_keys(inheritance.issuers), clock)
    users = SubmissionApi(context, submitter=end, authenticator=authenticator, otherwise=end.forward)
    server = HttpServer(users, listener, clock=clock, bounds=Bounds.of(settings.server))
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    await loop.create_connection(end.protocol, sock=pair)
    calm_collector()
    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(_tell_counts(end, telemetry, clock))
        lost = tasks.create_task(end.until_lost())
        door = tasks.create_task(server.run_until_stopped())
        end.tell_ready()
        await asyncio.wait((door, lost), return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        await door
        counting.cancel()
        end.tell_counts(telemetry.request_counts())
        end.close()


async def _tell_counts(end: WorkerEnd, telemetry: Telemetry, clock: Clock) -> None:
    while True:
        await clock.sleep(COUNTS_SECONDS)
        end.tell_counts(telemetry.request_counts())
