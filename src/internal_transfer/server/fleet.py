"""Several equal processes of the service on one port, on a store that they share: `serve --processes N`.

The parent holds the listening socket and the data directory, and only keeps the processes running. Each has its own
directory below that one.
"""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from internal_transfer.server.sockets import listen
from internal_transfer.server.supervisor import READY_LINE, Supervisor, reason_of, told_to_stop
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.demo_issuer import FILE_NAME, DemoIssuer

STOP_SECONDS = 60.0
"""How long a process may take to stop; its HTTP workers may take 50 of them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How many processes, on which port, and the other options of `serve` for each of them."""

    count: int
    data: Path
    host: str
    port: int
    admin_port: int
    demo: bool
    passed_on: Sequence[str]

    def directory_of(self, number: int) -> Path:
        """Returns the data directory of a process; numbers begin at 0, names at 1."""
        return self.data / f"process-{number + 1}"


async def serve_fleet(options: FleetOptions) -> None:
    """Serves until SIGTERM or SIGINT; raises `StartRefusedError` if a process cannot start.

    The first process has the admin port that was given, each further one the next; with 0 each picks a free one. The
    operators' socket is the first process's.
    """
    directory = DataDirectory(options.data)
    directory.acquire()
    try:
        for number in range(options.count):
            _furnish(options, options.directory_of(number))
        directory.admin_socket.unlink(missing_ok=True)
        first = DataDirectory(options.directory_of(0)).admin_socket
        directory.admin_socket.symlink_to(first.relative_to(options.data))
        with listen(options.host, options.port) as listener:
            await _serve(options, listener)
    except ExceptionGroup as failed:
        raise reason_of(failed) from None
    finally:
        directory.release()


def _furnish(options: FleetOptions, directory: Path) -> None:
    """Makes a process's directory; in a demonstration all processes trust the same issuer's tokens."""
    directory.mkdir(mode=0o700, exist_ok=True)
    if options.demo:
        DemoIssuer.create(options.data)
        shutil.copy2(options.data / FILE_NAME, directory / FILE_NAME)


async def _serve(options: FleetOptions, listener: socket.socket) -> None:
    said: list[str] = []
    supervisor = Supervisor(
        "process",
        lambda number, ready: _Process(options, listener, number, ready, said),
        count=options.count,
        stop_seconds=STOP_SECONDS,
    )

    async def announce() -> None:
        await supervisor.ready()
        port = listener.getsockname()[1]
        for line in (*said[-1:], f"{READY_LINE}http://{options.host}:{port}"):
            print(line, flush=True)  # noqa: T201
        _log.info("fleet_ready", port=port, processes=options.count)

    stop = told_to_stop()
    async with asyncio.TaskGroup() as tasks:
        supervisor.start(tasks)
        starting = tasks.create_task(announce())
        await stop.wait()
        starting.cancel()
        supervisor.stop()


class _Process:
    """One run of one of the processes. What it prints before it is ready, a demonstration's curl, goes to `said`."""

    def __init__(
        self, options: FleetOptions, listener: socket.socket, number: int, ready: Callable[[], None], said: list[str]
    ) -> None:
        self._options = options
        self._listener = listener.fileno()
        self._number = number
        self._ready = ready
        self._said = said

    async def start(self) -> asyncio.subprocess.Process:
        options = self._options
        admin_port = options.admin_port + self._number if options.admin_port else 0
        # -P: modules in the working directory are not the program's.
        command = [sys.executable, "-P", "-m", "internal_transfer.cli", "serve", *options.passed_on]
        command += ["--data", str(options.directory_of(self._number)), "--host", options.host]
        command += ["--admin-port", str(admin_port), "--inherit", f"{os.getpid()}:{self._listener}"]
        return await asyncio.create_subprocess_exec(
            *command, pass_fds=(self._listener,), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            if line.startswith(READY_LINE):
                self._ready()
            elif line.startswith("curl"):
                self._said.append(line.strip())

    def ask_to_stop(self, process: asyncio.subprocess.Process) -> None:
        process.terminate()
