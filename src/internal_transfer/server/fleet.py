"""Several equal processes of the service on one port, where they share their systems: `serve --workers N`.

The parent holds the listening socket and the data directory, and does nothing else: it starts the processes, each with
a directory of its own below, starts another one for one that dies, and stops all of them.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.server.sockets import listen
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.settings.demo_issuer import FILE_NAME, DemoIssuer

START_SECONDS = 60.0
STOP_SECONDS = 60.0
AGAIN_SECONDS = 1.0
READY_LINE = "internal-transfer is ready on "

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How many processes, on which port, and the options of `serve` that each of them is given besides."""

    count: int
    data: Path
    host: str
    port: int
    admin_port: int
    demo: bool
    passed_on: Sequence[str]


async def serve_fleet(options: FleetOptions) -> None:
    """Serves until SIGTERM or SIGINT; raises `StartRefusedError` where a process cannot start.

    The first process has the admin port that was given, each further one the next; with 0 each picks a free one. Its
    socket for operators is the first process's.
    """
    directory = DataDirectory(options.data)
    directory.acquire()
    try:
        with listen(options.host, options.port) as listener:
            await _Fleet(options, listener).run()
    finally:
        directory.release()


class _Fleet:
    def __init__(self, options: FleetOptions, listener: socket.socket) -> None:
        self._options = options
        self._listener = listener
        self._stop = asyncio.Event()
        self._ready = [asyncio.Event() for _ in range(options.count)]
        self._curl = ""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for told in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(told, self._stop.set)
        for number in range(self._options.count):
            self._furnish(self._directory_of(number))
        self._show_operators_socket()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._options.count):
                    tasks.create_task(self._keep(number))
                tasks.create_task(self._announce())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _directory_of(self, number: int) -> Path:
        return self._options.data / f"worker-{number + 1}"

    def _furnish(self, directory: Path) -> None:
        """Makes a process's directory; in a demonstration all of them believe the tokens of the one issuer."""
        directory.mkdir(mode=0o700, exist_ok=True)
        if self._options.demo:
            DemoIssuer.create(self._options.data)
            shutil.copy2(self._options.data / FILE_NAME, directory / FILE_NAME)

    def _show_operators_socket(self) -> None:
        shown = DataDirectory(self._options.data).admin_socket
        shown.unlink(missing_ok=True)
        shown.symlink_to(DataDirectory(self._directory_of(0)).admin_socket.relative_to(self._options.data))

    async def _announce(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                for ready in self._ready:
                    await ready.wait()
        except TimeoutError as error:
            raise StartRefusedError(f"not every process was ready in {START_SECONDS:g} s; see the log") from error
        host, port = self._options.host, self._listener.getsockname()[1]
        if self._stop.is_set():
            return
        if self._curl:
            print(self._curl, flush=True)  # noqa: T201
        print(f"{READY_LINE}http://{host}:{port}", flush=True)  # noqa: T201
        _log.info("fleet_ready", port=port, processes=self._options.count)

    async def _keep(self, number: int) -> None:
        while True:
            code = await self._run_one(number)
            if self._stop.is_set():
                self._ready[number].set()
                return
            if not self._ready[number].is_set():
                raise StartRefusedError(f"process {number + 1} ended with {code} before it was ready; see the log")
            # Whatever it had accepted is finished by the others: its transfers are due soon.
            (_log.error if code else _log.info)("process_ended", process=number + 1, code=code)
            try:
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._stop.wait()
            except TimeoutError:
                continue
            return

    async def _run_one(self, number: int) -> int:
        """Runs one process until it ends, or until all are to stop; answers its exit code."""
        options, listener = self._options, self._listener.fileno()
        admin_port = options.admin_port + number if options.admin_port else 0
        # -P: what lies in the working directory is not the program's.
        command = [sys.executable, "-P", "-m", "internal_transfer.cli", "serve", *options.passed_on]
        command += ["--data", str(self._directory_of(number)), "--host", options.host]
        command += ["--admin-port", str(admin_port), "--inherit", f"{os.getpid()}:{listener}"]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(listener,), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(number, process))
            stopping = tasks.create_task(self._stop.wait())
            ended = tasks.create_task(process.wait())
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(STOP_SECONDS):
                        await asyncio.shield(ended)
                except TimeoutError:
                    _log.warning("process_killed", process=number + 1)
                    process.kill()
            code = await ended
            stopping.cancel()
            await reading
        return code

    async def _read(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            if line.startswith(READY_LINE):
                self._ready[number].set()
            elif line.startswith("curl"):
                self._curl = line.strip()
