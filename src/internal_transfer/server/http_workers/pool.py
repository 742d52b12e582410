"""The processes that speak HTTP for the service: how many there are, and how each one starts and stops."""

import asyncio
import contextlib
import os
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace
from starlette.types import ASGIApp

from internal_transfer.api.problems import Problems
from internal_transfer.server.http_workers.service_end import ServiceEnd
from internal_transfer.server.http_workers.worker import Inheritance
from internal_transfer.server.supervisor import Supervisor
from internal_transfer.settings.issuers import TrustedIssuer
from internal_transfer.settings.settings import Secrets
from internal_transfer.settings.trust import to_keys
from internal_transfer.wiring.service import Service

BY_DEFAULT_MAX = 3
STOP_SECONDS = 50.0
"""How long a worker may take to answer what it accepted; longer than its HTTP server gives its clients."""


class HttpWorkers:
    """Keeps as many workers on one listening socket as the settings say; none if nobody listens for users.

    By default a service that is alone on its store has a worker for each further processor, and one that shares its
    store has none.

    While a worker is replaced, new connections wait at the socket, which is open in this process too.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        service: Service,
        app: ASGIApp,
        issuers: Sequence[TrustedIssuer],
        tasks: asyncio.TaskGroup,
    ) -> None:
        wanted = service.settings.server.http_workers
        if wanted is None:
            wanted = min(_processors() - 1, BY_DEFAULT_MAX) if service.settings.systems.is_alone else 0
        self.count = 0 if listener is None else wanted
        self._listener = listener
        self._service = service
        self._app = app
        self._tasks = tasks
        inheritance = Inheritance(replace(service.settings, secrets=Secrets()), to_keys(issuers))
        self._inheritance = msgspec.json.encode(inheritance)
        self._problems = Problems(service.ports.clock)
        self._supervisor = Supervisor(
            "HTTP worker",
            self._launch,
            count=self.count,
            stop_seconds=STOP_SECONDS,
            advice="see the log, or set server.http_workers = 0",
        )

    def start(self) -> list[asyncio.Task[None]]:
        """Starts them; see `Supervisor.start`."""
        return self._supervisor.start(self._tasks)

    async def ready(self) -> None:
        """Waits until all take connections; see `Supervisor.ready`."""
        await self._supervisor.ready()

    def unready(self) -> str | None:
        """Returns why users cannot be answered now, or None."""
        return "no HTTP worker takes connections" if self.count and not self._supervisor.is_any_ready else None

    def stop(self) -> None:
        """Asks all to answer what they accepted, and to end."""
        if self.count and self._listener is not None:
            self._listener.close()
        self._supervisor.stop()

    def _launch(self, _: int, ready: Callable[[], None]) -> "_Worker":
        end = ServiceEnd(
            gateway=self._service.gateway,
            app=self._app,
            problems=self._problems,
            count=self._count,
            ready=ready,
            tasks=self._tasks,
        )
        assert self._listener is not None, "there are workers only if users are listened to"
        return _Worker(self._listener, end, self._inheritance)

    def _count(self, route: str, outcome: str, code: str, number: float) -> None:
        self._service.ports.telemetry.requests.labels(route, outcome, code).inc(number)


class _Worker:
    """One run of a worker's process."""

    def __init__(self, listener: socket.socket, end: ServiceEnd, inheritance: bytes) -> None:
        self._listener = listener
        self._end = end
        self._inheritance = inheritance

    async def start(self) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (self._listener.fileno(), theirs.fileno())
            # -P: modules in the working directory are not the program's.
            command = [sys.executable, "-P", "-m", "internal_transfer.server.http_workers"]
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, *map(str, (os.getpid(), *fds)), pass_fds=fds, stdin=PIPE, stdout=sys.stderr
                )
            except OSError:
                ours.close()
                raise
        await asyncio.get_running_loop().create_connection(self._end.protocol, sock=ours)
        return process

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        # A worker that has died already cannot be told, and the end of its pair shows that it died.
        if not process.stdin.is_closing():
            process.stdin.write(self._inheritance)
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
                process.stdin.close()
        await self._end.until_lost()

    def ask_to_stop(self, _: asyncio.subprocess.Process) -> None:
        self._end.stop()


def _processors() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
