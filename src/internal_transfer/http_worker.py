"""A process that speaks HTTP for the service: `python -m internal_transfer.http_worker`, started by the service only.

It takes connections from the listening socket that it inherits, and everything it cannot answer by itself goes over the
socket pair that it inherits too. It ends with the service: at once when that dies, and after answering when asked to.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from internal_transfer.adapters.clock.system import SystemClock
from internal_transfer.api.paths import TRANSFERS
from internal_transfer.api.relay import WorkerEnd
from internal_transfer.api.routes import create_app
from internal_transfer.api.server import Bounds, HttpServer
from internal_transfer.services.gateway import Gateway
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.settings import Settings, load
from internal_transfer.telemetry import Telemetry, configure_logging
from internal_transfer.trust import authenticator_of

COUNTS_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class Inheritance(Struct, frozen=True):
    """What the service tells a worker, as JSON on its command line."""

    service: int
    listener_fd: int
    pair_fd: int
    data: str
    config: str | None
    demo: bool


def main() -> None:
    """Runs a worker until the service is gone or asks it to stop."""
    inheritance = msgspec.json.decode(sys.argv[1], type=Inheritance)
    # The service may die without a word; then the port has to be free at once for the next one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != inheritance.service:
        return
    # A terminal's interrupt reaches every process; the service decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    uvloop.run(_work(inheritance, load(None if inheritance.config is None else Path(inheritance.config))))


async def _work(inheritance: Inheritance, settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    clock, telemetry = SystemClock(), Telemetry()
    end = WorkerEnd(settings.rules, waiting_most=settings.transfers.queue_max, stop=lambda: server.stop())  # noqa: PLW0108 - it comes later.
    users = create_app(
        rules=settings.rules,
        gateway=cast("Gateway", end),
        inquiry=cast("Inquiry", None),  # Questions go to the service as whole requests.
        authenticator=authenticator_of(settings, Path(inheritance.data), clock, demo=inheritance.demo),
        clock=clock,
        telemetry=telemetry,
        wait_seconds=settings.transfers.wait_seconds,
        deadline_seconds=settings.transfers.deadline_seconds,
    )
    server = HttpServer(
        _submissions_only(users, end.forward),
        socket.socket(fileno=inheritance.listener_fd),
        clock=clock,
        bounds=Bounds(
            request_seconds=settings.server.receive_deadline_seconds, connections_most=settings.server.connections_max
        ),
    )
    await loop.create_connection(end.protocol, sock=socket.socket(fileno=inheritance.pair_fd))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    async with asyncio.TaskGroup() as tasks:
        told: dict[tuple[str, str, str], float] = {}
        counting = tasks.create_task(_tell_counts(end, telemetry, clock, told))
        lost = tasks.create_task(end.until_lost())
        door = tasks.create_task(server.run_until_stopped())
        end.say_ready()
        await asyncio.wait((door, lost), return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        await door
        counting.cancel()
        _say_new_counts(end, telemetry, told)
        await clock.sleep(0)
        end.close()


def _submissions_only(users: ASGIApp, forward: ASGIApp) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_submission = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == TRANSFERS
        await (users if is_submission else forward)(scope, receive, send)

    return app


async def _tell_counts(
    end: WorkerEnd, telemetry: Telemetry, clock: SystemClock, told: dict[tuple[str, str, str], float]
) -> None:
    while True:
        await clock.sleep(COUNTS_SECONDS)
        _say_new_counts(end, telemetry, told)


def _say_new_counts(end: WorkerEnd, telemetry: Telemetry, told: dict[tuple[str, str, str], float]) -> None:
    counts = []
    for labels, total in telemetry.request_counts().items():
        if total > told.get(labels, 0.0):
            counts.append((*labels, total - told.get(labels, 0.0)))
            told[labels] = total
    if counts:
        end.say_counts(counts)


if __name__ == "__main__":
    main()
