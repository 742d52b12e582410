"""What stands around a server in a scenario: nothing, or real systems with a ledger and a trading core beside it.

Where the systems are is told by the environment, as `python -m servers env` prints it. Every server gets a schema, a
keyspace, topics and a core of its own, so that scenarios do not see each other.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from internal_transfer.simulation.scenarios.expectation import DEADLINE_SECONDS, ScenarioFailedError

PROGRAM = (sys.executable, "-m", "internal_transfer.cli")
_LOG_LINES_SHOWN = 15


class StackKind(StrEnum):
    """Which systems a server runs on."""

    EMBEDDED = "embedded"
    POSTGRESQL = "postgresql"
    CASSANDRA = "cassandra"


class Companion:
    """A process beside the server, which is ready when it prints a line."""

    def __init__(self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._name = name
        self._words = words
        self._log = log
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    async def start(self) -> None:
        """Starts it and waits for its line; raises `ScenarioFailedError` with its log if it ends before."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=dict(self._environment),
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            line = await self._process.stdout.readline()
        if b"ready" not in line:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
            raise ScenarioFailedError(f"{self._name} did not start:\n{end}")

    async def kill(self) -> None:
        """Kills it as a power switch would, if it runs."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Asks it to stop."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class Surroundings:
    """The systems around one server, with the settings and secrets that name them."""

    def __init__(self, kind: StackKind, directory: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.kind = kind
        self.settings = ""
        self.environment: dict[str, str] = dict(environment)
        self._directory = directory
        self.ledger: Companion | None = None
        self.core: Companion | None = None
        self._is_started = False
        if kind is not StackKind.EMBEDDED:
            self._name_systems(environment, f"it_{secrets.token_hex(6)}")

    def _name_systems(self, environment: Mapping[str, str], name: str) -> None:
        tigerbeetle = environment.get("TIGERBEETLE_ADDRESS", "")
        ledger = "tigerbeetle" if tigerbeetle else "socket"
        lines = [
            "[systems]",
            f'store = "{self.kind}"',
            f'ledger = "{ledger}"',
            'core = "kafka"',
            'events = "kafka"',
            "[kafka]",
            f'servers = ["{_required(environment, "KAFKA_BOOTSTRAP")}"]',
            f'prefix = "{name}"',
            "partitions = 2",
            "[ledger_socket]",
            f'data = "{self._directory / "ledger"}"',
        ]
        if tigerbeetle:
            lines += ["[tigerbeetle]", f'addresses = ["{tigerbeetle}"]']
        if self.kind is StackKind.POSTGRESQL:
            self.environment["INTERNAL_TRANSFER_POSTGRES_URL"] = _required(environment, "POSTGRESQL_DSN")
            lines += ["[postgresql]", f'db_schema = "{name}"']
        else:
            host, _, port = _required(environment, "CASSANDRA_ADDRESS").rpartition(":")
            lines += ["[cassandra]", f'hosts = ["{host}"]', f"port = {port}", f'keyspace = "{name}"']
            lines += ["replication = \"{'class': 'SimpleStrategy', 'replication_factor': 1}\""]
        self.settings = "\n".join(lines) + "\n"
        config = self._directory / "settings.toml"
        if not tigerbeetle:
            self.ledger = self._companion(
                "ledger", "serve", "--roles", "ledger", "--data", str(self._directory / "ledger"), "--admin-port", "0"
            )
        self.core = self._companion(
            "core", "core", "--demo", "--config", str(config), "--data", str(self._directory / "core")
        )

    def _companion(self, name: str, *words: str) -> Companion:
        return Companion(name, words, self._directory / f"{name}.log", self.environment)

    async def start(self) -> None:
        """Makes the tables and topics and starts what is beside the server; once."""
        if self._is_started or self.kind is StackKind.EMBEDDED:
            return
        self._is_started = True
        await self.migrate()
        for companion in (self.ledger, self.core):
            if companion is not None:
                await companion.start()

    async def migrate(self) -> None:
        """Makes the tables and topics."""
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
        """Ends what is beside the server."""
        for companion in (self.core, self.ledger):
            if companion is not None:
                await companion.kill()


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise ScenarioFailedError(f"{name} is not set: start the systems, and set what `python -m servers env` prints")
    return value
