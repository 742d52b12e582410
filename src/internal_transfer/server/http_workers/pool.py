"""The processes that speak HTTP for the service: started, replaced when they die, and stopped with it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec
import structlog
from msgspec.structs import replace
from starlette.types import ASGIApp

from internal_transfer.api.problems import Problems
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.http_workers.worker import Inheritance
from internal_transfer.server.http_workers.worker_end import ServiceEnd
from internal_transfer.settings.issuers import TrustedIssuer
from internal_transfer.settings.settings import Secrets
from internal_transfer.settings.trust import to_keys
from internal_transfer.wiring.building import Service

BY_DEFAULT_MAX = 3
START_SECONDS = 30.0
AGAIN_SECONDS = 1.0
STOP_SECONDS = 50.0
"""How long a worker may take to answer what it took; longer than what its HTTP server gives its clients."""
END_SECONDS = 2.0
"""How long a worker may take to end when it has closed its pair, and can do nothing any more."""

_log = structlog.get_logger(__name__)


class Workers:
    """Keeps as many workers on one listening socket as the settings say; none where they say 0 or nobody listens.

    Where processes share a store, each of them speaks HTTP itself unless the settings say otherwise.

    While a worker is replaced, new connections wait at the socket, which is open in this process too.
    """

    def __init__(
        self, listener: socket.socket | None, service: Service, app: ASGIApp, issuers: Sequence[TrustedIssuer]
    ) -> None:
        wanted = service.settings.server.http_workers
        if wanted is None:
            wanted = min(_processors() - 1, BY_DEFAULT_MAX) if service.settings.systems.is_alone else 0
        self.count = 0 if listener is None else wanted
        self._listener = listener
        self._service = service
        self._app = app
        inheritance = Inheritance(replace(service.settings, secrets=Secrets()), to_keys(issuers))
        self._inheritance = msgspec.json.encode(inheritance)
        self._problems = Problems(service.clock)
        self._ends: list[ServiceEnd] = []
        self._ready = [asyncio.Event() for _ in range(self.count)]
        self._stopping = asyncio.Event()

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Starts them; each task ends when its worker has ended after `stop`.

        A task raises `StartRefusedError` where its first worker ends before it takes connections.
        """
        return [tasks.create_task(self._keep(ready, tasks)) for ready in self._ready]

    async def ready(self) -> None:
        """Waits until all take connections; raises `StartRefusedError` where one does not in time."""
        try:
            async with asyncio.timeout(START_SECONDS):
                for ready in self._ready:
                    await ready.wait()
        except TimeoutError as error:
            raise _refused("did not start in time") from error

    def unready(self) -> str | None:
        """Why users cannot be answered now, or None."""
        if self.count and not any(end.is_ready and not end.is_lost for end in self._ends):
            return "no HTTP worker takes connections"
        return None

    def stop(self) -> None:
        """Asks all to answer what they took, and to end; they are given up after `STOP_SECONDS`."""
        self._stopping.set()
        if self.count and self._listener is not None:
            self._listener.close()
        for end in self._ends:
            end.stop()
            asyncio.get_running_loop().call_later(STOP_SECONDS, end.abort)

    async def _keep(self, ready: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        while not self._stopping.is_set():
            end = ServiceEnd(
                gateway=self._service.gateway,
                app=self._app,
                problems=self._problems,
                count=self._count,
                ready=ready.set,
                tasks=tasks,
            )
            code = await self._run_one(end)
            if self._stopping.is_set():
                return
            if not ready.is_set() and code != -signal.SIGTERM:
                raise _refused(f"ended with {code} before it took connections")
            # What it had accepted goes on here; its clients find out under the same keys.
            (_log.error if code else _log.info)("http_worker_ended", code=code)
            if not end.is_ready:
                await self._pause()

    async def _pause(self) -> None:
        """Waits before the next attempt where the last one came to nothing."""
        try:
            async with asyncio.timeout(AGAIN_SECONDS):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _run_one(self, end: ServiceEnd) -> int:
        """Runs a worker until it has ended, and answers its exit code; the system's error where it cannot start."""
        assert self._listener is not None, "there are workers only where users are listened to"
        ours, theirs = socket.socketpair()
        listener_fd, pair_fd = self._listener.fileno(), theirs.fileno()
        # -P: what lies in the working directory is not the program's.
        command = [sys.executable, "-P", "-m", "internal_transfer.server.http_workers"]
        command += [str(number) for number in (os.getpid(), listener_fd, pair_fd)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=(listener_fd, pair_fd), stdin=asyncio.subprocess.PIPE, stdout=sys.stderr
            )
        except OSError as error:
            ours.close()
            _log.error("http_worker_not_started", error=str(error))
            return error.errno or 1
        finally:
            theirs.close()
        try:
            await asyncio.get_running_loop().create_connection(end.protocol, sock=ours)
            self._ends.append(end)
            if self._stopping.is_set():
                end.stop()
            await self._tell(process)
            await end.until_lost()
            async with asyncio.timeout(END_SECONDS):
                return await process.wait()
        except TimeoutError:
            _log.warning("http_worker_killed", pid=process.pid)
            process.kill()
            return await process.wait()
        finally:
            if end in self._ends:
                self._ends.remove(end)
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _tell(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        if process.stdin.is_closing():
            return  # As below; writing would be an error of its own.
        process.stdin.write(self._inheritance)
        try:
            await process.stdin.drain()
        except ConnectionError:
            return  # It has died already, which the end of its pair shows.
        process.stdin.close()

    def _count(self, route: str, outcome: str, code: str, number: float) -> None:
        self._service.telemetry.requests.labels(route, outcome, code).inc(number)


def _refused(what: str) -> StartRefusedError:
    return StartRefusedError(f"an HTTP worker {what}; see the log, or set server.http_workers = 0")


def _processors() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
