"""A process that speaks HTTP for the service; `__main__` is where it begins.

It takes connections from the listening socket that it inherits, and everything it cannot answer by itself goes over the
socket pair that it inherits too. It ends with the service: at once when that dies, and after answering when asked to.
A SIGTERM of its own has it answer what it took and end, and the service starts another.
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
    """What the service tells a worker on its standard input, as JSON.

    Settings and keys are those that the service read at its start: a worker that is started later must not differ from
    it. The secrets among the settings are left out.
    """

    settings: Settings
    issuers: tuple[IssuerKeys, ...]


def run(listener_fd: int, pair_fd: int) -> int:
    """Runs a worker until the service is gone or asks it to stop; answers its exit code."""
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
    context = ApiContext(
        rules=settings.rules,
        clock=clock,
        telemetry=telemetry,
        wait_seconds=settings.transfers.wait_seconds,
        deadline_seconds=settings.transfers.deadline_seconds,
    )
    authenticator = Authenticator(from_keys(inheritance.issuers), clock)
    users = SubmissionApi(context, submitter=end, authenticator=authenticator, otherwise=end.forward)
    server = HttpServer(
        users,
        listener,
        clock=clock,
        bounds=Bounds(
            request_seconds=settings.server.receive_deadline_seconds, connections_most=settings.server.connections_max
        ),
    )
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    await loop.create_connection(end.protocol, sock=pair)
    calm_collector()
    async with asyncio.TaskGroup() as tasks:
        told: dict[tuple[str, str, str], float] = {}
        counting = tasks.create_task(_tell_counts(end, telemetry, clock, told))
        lost = tasks.create_task(end.until_lost())
        door = tasks.create_task(server.run_until_stopped())
        end.tell_ready()
        await asyncio.wait((door, lost), return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        await door
        counting.cancel()
        _tell_new_counts(end, telemetry, told)
        end.close()


async def _tell_counts(
    end: WorkerEnd, telemetry: Telemetry, clock: Clock, told: dict[tuple[str, str, str], float]
) -> None:
    while True:
        await clock.sleep(COUNTS_SECONDS)
        _tell_new_counts(end, telemetry, told)


def _tell_new_counts(end: WorkerEnd, telemetry: Telemetry, told: dict[tuple[str, str, str], float]) -> None:
    counts = []
    for labels, total in telemetry.request_counts().items():
        if total > told.get(labels, 0.0):
            counts.append((*labels, total - told.get(labels, 0.0)))
            told[labels] = total
    if counts:
        end.tell_counts(counts)
