"""A ledger's host in the test's own event loop, or in a process that can be killed, and a client of it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from internal_transfer.adapters.ledger_socket.ledger import SocketLedger, SocketLedgerSettings
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.hosts.ledger.server import serve_ledger
from internal_transfer.settings.data_directory import DataDirectory


class SocketLedgerServer:
    """The embedded ledger behind its socket; `open` makes it."""

    id_base = 0
    history_start = 0

    def __init__(self, path: Path) -> None:
        self.directory = DataDirectory(path)
        self.ledger = SocketLedger(SocketLedgerSettings(path=self.directory.ledger_socket, deadline_seconds=60.0))

    @classmethod
    async def open(cls, path: Path) -> "SocketLedgerServer":
        """Starts the host and connects."""
        server = cls(path)
        await server.host()
        await server.ledger.start()
        return server

    async def host(self) -> None:
        """Starts the host."""
        self.directory.acquire()
        self.stop = asyncio.Event()
        ready = asyncio.Event()
        self.serving = asyncio.ensure_future(
            serve_ledger(self.directory, self.stop, clock=SystemClock(), ready=ready.set)
        )
        await ready.wait()

    async def settle(self) -> None:
        """Nothing to wait for: what the host answers is on record."""

    async def unhost(self) -> None:
        """Stops the host."""
        self.stop.set()
        await self.serving
        self.directory.release()

    async def reopen(self) -> None:
        """Stops the host and starts it again; the client finds it by itself."""
        await self.unhost()
        await self.host()

    async def close(self) -> None:
        """Disconnects and stops the host."""
        await self.ledger.close()
        await self.unhost()


_PROGRAM = """
import asyncio, signal, sys
from pathlib import Path
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.hosts.ledger.server import serve_ledger

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    directory = DataDirectory(Path(sys.argv[1]))
    directory.acquire()
    await serve_ledger(directory, stop, clock=SystemClock(), ready=lambda: print("ready", flush=True))

asyncio.run(main())
"""


class HostProcess:
    """A host in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.socket = DataDirectory(path).ledger_socket
        self._path = path

    async def start(self) -> None:
        """Starts it, and waits until clients can connect."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, str(self._path), stdout=asyncio.subprocess.PIPE
        )
        assert await self._process.stdout.readline() == b"ready\n"

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    async def wait(self) -> int:
        """Waits until it has ended, and gives its exit code."""
        return await self._process.wait()

    async def end(self) -> None:
        """Ends it, however it is."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
