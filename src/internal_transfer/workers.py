"""The processes that speak HTTP for the service: started, replaced when they die, and stopped with it."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from starlette.types import ASGIApp

from internal_transfer.api.relay import ServiceEnd
from internal_transfer.embedded.database import Database
from internal_transfer.http_worker import Inheritance
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.wiring import Interposed, Service

BY_DEFAULT_MAX = 3
START_SECONDS = 30.0
AGAIN_SECONDS = 1.0
STOP_SECONDS = 60.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line says about a server; port 0 picks a free one."""

    data: Path = Path("data")
    config: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 9464
    demo: bool = False
    interpose: Callable[[Database], Interposed] | None = None


class Workers:
    """Keeps `count` workers on one listening socket; none where `count` is 0."""

    def __init__(
        self, options: ServeOptions, listener: socket.socket, service: Service, app: ASGIApp, count: int | None
    ) -> None:
        processors = len(os.sched_getaffinity(0))
        self.count = min(processors - 1, BY_DEFAULT_MAX) if count is None else count
        self._options = options
        self._listener = listener
        self._service = service
        self._app = app
        self._ends: list[ServiceEnd] = []
        self._ready = [asyncio.Event() for _ in range(self.count)]
        self._stopping = False

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Starts them; each task ends when its worker has ended after `stop`."""
        return [tasks.create_task(self._keep(ready)) for ready in self._ready]

    async def ready(self) -> None:
        """Waits until all take connections; raises `StartRefusedError` where one does not in time."""
        try:
            async with asyncio.timeout(START_SECONDS):
                for ready in self._ready:
                    await ready.wait()
        except TimeoutError as error:
            raise StartRefusedError(
                "an HTTP worker did not start in time; see the log, or set server.http_workers = 0"
            ) from error

    def stop(self) -> None:
        """Asks all to answer what they took, and to end."""
        self._stopping = True
        for end in self._ends:
            end.stop()

    async def _keep(self, ready: asyncio.Event) -> None:
        while not self._stopping:
            code = await self._run_one(ready)
            if not self._stopping:
                # What it had accepted goes on here; its clients find out under the same keys.
                _log.error("http_worker_died", code=code)
                await self._service.clock.sleep(AGAIN_SECONDS)

    async def _run_one(self, ready: asyncio.Event) -> int:
        ours, theirs = socket.socketpair()
        options = self._options
        inheritance = Inheritance(
            service=os.getpid(),
            listener_fd=self._listener.fileno(),
            pair_fd=theirs.fileno(),
            data=str(options.data),
            config=None if options.config is None else str(options.config),
            demo=options.demo,
        )
        command = [sys.executable, "-m", "internal_transfer.http_worker", msgspec.json.encode(inheritance).decode()]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(inheritance.listener_fd, inheritance.pair_fd), stdin=asyncio.subprocess.DEVNULL
        )
        theirs.close()
        count = self._service.telemetry.requests
        end = ServiceEnd(
            gateway=self._service.gateway,
            app=self._app,
            count=lambda route, outcome, code, number: count.labels(route, outcome, code).inc(number),
            ready=ready,
        )
        await asyncio.get_running_loop().create_connection(end.protocol, sock=ours)
        self._ends.append(end)
        if self._stopping:
            end.stop()
        try:
            await end.run()
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()
        finally:
            self._ends.remove(end)
