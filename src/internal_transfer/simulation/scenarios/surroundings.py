"""The surroundings of a server in a scenario: none, or real systems with a ledger and a trading core beside it.

The environment names the systems, as `python -m servers env` prints it. Every server gets its own schema, keyspace,
topics and core, so that scenarios do not see each other, and with TIGERBEETLE_BINARY its own TigerBeetle instead of a
process with the role `ledger`.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from internal_transfer.simulation.scenarios.expectation import CLOCK, DEADLINE_SECONDS, ScenarioFailedError
from internal_transfer.simulation.scenarios.process import PROGRAM, Process


class StackKind(StrEnum):
    """The systems that a server runs on."""

    EMBEDDED = "embedded"
    POSTGRESQL = "postgresql"
    CASSANDRA = "cassandra"


class Companion(Process):
    """A process beside the server; it is ready when it prints a line."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        super().__init__(log)
        self._name = name
        self._words = (*program, *words)
        self._environment = environment

    async def start(self) -> None:
        """Starts it and waits for its line; raises `ScenarioFailedError` with its log if it ends first."""
        output = await self._launch()
        async with asyncio.timeout(DEADLINE_SECONDS):
            line = await output.readline()
        if b"ready" not in line:
            raise ScenarioFailedError(f"{self._name} did not start:\n{self.log_end()}")

    async def _launch(self) -> asyncio.StreamReader:
        return await self.spawn(*self._words, environment=self._environment)


class TigerBeetle(Companion):
    """A cluster of one replica for one server, since a ledger belongs to one record of transfers."""

    def __init__(self, program: str, directory: Path, environment: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.file = directory / "0_0.tigerbeetle"
        self._program = program
        words = ("start", f"--addresses={self.address}", "--cache-grid=128MiB", str(self.file))
        super().__init__("tigerbeetle", words, directory / "tigerbeetle.log", environment, program=(program,))

    async def start(self) -> None:
        """Formats its file on the first start, and waits until it listens."""
        if not self.file.exists():
            cluster = ("--cluster=0", "--replica=0", "--replica-count=1")
            formatting = await asyncio.create_subprocess_exec(
                self._program, "format", *cluster, str(self.file), stderr=asyncio.subprocess.DEVNULL
            )
            if await formatting.wait() != 0:
                raise ScenarioFailedError(f"{self._program} could not format its file")
        await self._launch()
        host, _, port = self.address.rpartition(":")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with contextlib.suppress(ConnectionError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return
                await CLOCK.sleep(0.05)


class Surroundings:
    """The systems around one server, and the settings and secrets that name them."""

    def __init__(self, kind: StackKind, directory: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.kind = kind
        self.name = f"it_{secrets.token_hex(6)}"
        """Its schema or keyspace, and the prefix of its topics."""
        self.settings = ""
        self.environment: dict[str, str] = dict(environment)
        self._directory = directory
        self.ledger: Companion | None = None
        self.core: Companion | None = None
        self.core_directory: Path | None = None
        self._is_started = False
        if kind is not StackKind.EMBEDDED:
            self._name_systems(environment)

    def _name_systems(self, environment: Mapping[str, str]) -> None:
        name = self.name
        program = environment.get("TIGERBEETLE_BINARY", "")
        ledger = "tigerbeetle" if program else "socket"
        valkey = environment.get("VALKEY_URL", "")
        if valkey:
            self.environment["INTERNAL_TRANSFER_REDIS_URL"] = valkey
        lines = [
            "[systems]",
            f'store = "{self.kind}"',
            f'ledger = "{ledger}"',
            'core = "kafka"',
            'events = "kafka"',
            *(['rate_limiter = "valkey"'] if valkey else []),
            "[kafka]",
            f'servers = ["{_required(environment, "KAFKA_BOOTSTRAP")}"]',
            f'prefix = "{name}"',
            "partitions = 2",
            "[ledger_socket]",
            f'data = "{self._directory / "ledger"}"',
        ]
        if program:
            tigerbeetle = TigerBeetle(program, self._directory, environment)
            self.ledger = tigerbeetle
            lines += ["[tigerbeetle]", f'addresses = ["{tigerbeetle.address}"]']
        if self.kind is StackKind.POSTGRESQL:
            self.environment["INTERNAL_TRANSFER_POSTGRES_URL"] = _required(environment, "POSTGRESQL_DSN")
            lines += ["[postgresql]", f'db_schema = "{name}"']
        else:
            host, _, port = _required(environment, "CASSANDRA_ADDRESS").rpartition(":")
            lines += ["[cassandra]", f'hosts = ["{host}"]', f"port = {port}", f'keyspace = "{name}"']
            lines += ["replication = \"{'class': 'SimpleStrategy', 'replication_factor': 1}\""]
        self.settings = "\n".join(lines) + "\n"
        config = self._directory / "settings.toml"
        if not program:
            self.ledger = self._companion(
                "ledger", "serve", "--roles", "ledger", "--data", str(self._directory / "ledger"), "--admin-port", "0"
            )
        self.core_directory = self._directory / "core"
        self.core = self._companion(
            "core", "core", "--demo", "--config", str(config), "--data", str(self.core_directory)
        )

    def _companion(self, name: str, *words: str) -> Companion:
        return Companion(name, words, self._directory / f"{name}.log", self.environment)

    async def start(self) -> None:
        """Creates the tables and topics and starts the processes beside the server, the first time."""
        if self._is_started or self.kind is StackKind.EMBEDDED:
            return
        self._is_started = True
        await self.migrate()
        for companion in (self.ledger, self.core):
            if companion is not None:
                await companion.start()

    async def migrate(self) -> None:
        """Creates the tables and topics."""
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            "migrate",
            "--config",
            str(self._directory / "settings.toml"),
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode != 0:
            raise ScenarioFailedError(f"migrate ended with {process.returncode}: {said.decode()}")

    async def kill(self) -> None:
        """Kills the processes beside the server."""
        for companion in (self.core, self.ledger):
            if companion is not None:
                await companion.kill()


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise ScenarioFailedError(f"{name} is not set: start the systems, and set what `python -m servers env` prints")
    return value
