"""The parts of the tests of Aeron: a media driver as a process, and services and cores that communicate through it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace
from servers import place

from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.event_bus import AeronEventBus
from internal_transfer.adapters.aeron.settings import AeronConnection, Bounds, load_library
from internal_transfer.adapters.aeron.trading_core import BOUNDS, AeronTradingCore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.hosts.core.aeron import AeronCoreHost
from internal_transfer.hosts.core.host import CoreHost
from internal_transfer.ports.errors import System

Send = Callable[..., Awaitable[None]]


class MediaDriver:
    """A driver that can be killed and started again in the same directory."""

    def __init__(self, name: str) -> None:
        shared = Path("/dev/shm")
        self.directory = str((shared if shared.is_dir() else place.root()) / f"internal-transfer-{name}-{os.getpid()}")
        self._process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "internal_transfer.adapters.aeron.media_driver", self.directory, "2"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == self.directory

    @property
    def is_active(self) -> bool:
        """Whether its files say that it runs."""
        return bool(load_library().is_driver_active(self.directory, 2_000))

    def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def remove(self) -> None:
        self.end(signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)


async def until(condition: Callable[[], object]) -> None:
    """Lets other tasks run until this is true."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread or process.
        await asyncio.sleep(0.001)


class Service:
    """One process of the service: a client with a core that it tells commands and a bus on which it hears verdicts."""

    def __init__(
        self, connection: AeronConnection, clock: SystemClock, *, verdicts_most: int = 10_000, **bounds
    ) -> None:
        self.client = AeronClient(connection, clock=clock, bounds=Bounds(**bounds))
        asking = replace(BOUNDS, answer_seconds=3.0, again_seconds=0.3)
        self.core = AeronTradingCore(self.client, clock=clock, bounds=asking)
        self.poison: list[str] = []
        self.bus = AeronEventBus(self.client, verdicts_most=verdicts_most, on_poison=self.poison.append)

    async def __aenter__(self):
        await self.client.start()
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    async def connected(self) -> None:
        """Waits for the core on the other side."""
        await until(lambda: self.core.failure is None and self.bus.failure is None)

    async def tell(self, commands: Sequence[Command]) -> list[Verdict]:
        """Tells commands and takes their verdicts from the bus."""
        assert await self.core.tell(commands) == [None] * len(commands)
        return await self.take(len(commands))

    async def take(self, count: int) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while len(verdicts) < count:
            delivery = await self.bus.take(count - len(verdicts))
            verdicts += delivery.verdicts
            await self.bus.acknowledge(delivery)
        return verdicts


class Core:
    """The reference core behind its host, in this process, with a client of its own."""

    def __init__(self, connection: AeronConnection, clock: SystemClock, path: Path) -> None:
        self.database = Database(path)
        self.inner = CoreHost(self.database, clock=clock)
        self.poison: list[str] = []
        self.client = AeronClient(replace(connection, client_name="core"), clock=clock)
        self.host = AeronCoreHost(self.inner, self.client, clock=clock, on_poison=self.poison.append)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Core"]:
        stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.host.run(stop))
                await until(lambda: self.host.state().ready)
                try:
                    yield self
                finally:
                    stop.set()
        finally:
            self.database.close()


@asynccontextmanager
async def sending(connection: AeronConnection, clock: SystemClock, *ways: tuple[str, int]) -> AsyncIterator[Send]:
    """A function that sends any bytes on each of these channels and streams, as a foreign program would."""
    client = AeronClient(replace(connection, client_name="foreign"), clock=clock)
    outlets = [client.outlet(channel, stream, System.BUS) for channel, stream in ways]
    await client.start()
    await until(lambda: all(outlet.is_connected for outlet in outlets))

    async def send(*messages: bytes) -> None:
        for outlet in outlets:
            await client.offer(outlet, messages)

    yield send
    await client.close()


_CORE = """
import asyncio, sys
from pathlib import Path
import msgspec, structlog
from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import AeronConnection
from internal_transfer.hosts.core.aeron import AeronCoreHost
from internal_transfer.hosts.core.process import CoreOptions, run_core
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
connection = msgspec.json.decode(sys.argv[2], type=AeronConnection)
connect = lambda host, clock: AeronCoreHost(host, AeronClient(connection, clock=clock), clock=clock)
asyncio.run(run_core(CoreOptions(Path(sys.argv[1]), connect, on_ready=lambda: print("up", flush=True))))
"""


class CoreProcess:
    """A core as a process of its own, which can be killed and started again on its data."""

    def __init__(self, connection: AeronConnection, data: Path) -> None:
        self._arguments = [sys.executable, "-c", _CORE, str(data), msgspec.json.encode(connection).decode()]
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        assert await asyncio.to_thread(self._start) == "up\n"

    def _start(self) -> str:
        self._process = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    async def end(self, how: signal.Signals) -> int:
        """Sends the signal and returns the exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        code = await asyncio.to_thread(self._process.wait)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    async def remove(self) -> None:
        if self._process is not None:
            await self.end(signal.SIGKILL)
