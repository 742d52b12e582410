"""A process that a scenario starts, signals and kills."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from internal_transfer.simulation.scenarios.expectation import DEADLINE_SECONDS

PROGRAM = (sys.executable, "-m", "internal_transfer.cli")
_LOG_LINES_SHOWN = 15


class Process:
    """A process that logs to a file; it can be started again after it has ended."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Tells whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    async def spawn(self, *words: str, environment: Mapping[str, str] | None) -> asyncio.StreamReader:
        """Starts the process, and returns what it prints."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert self._process.stdout is not None
        return self._process.stdout

    async def stop(self) -> int:
        """Asks it to stop, as a service manager does, and returns its exit code."""
        self.signal(signal.SIGTERM)
        return await self.end()

    async def kill(self) -> None:
        """Kills it, if it runs."""
        if self.is_running:
            self.signal(signal.SIGKILL)
        if self._process is not None:
            await self.end()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has just ended."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self) -> int:
        """Waits until it has ended, and returns its exit code: minus the signal's number if a signal killed it."""
        assert self._process is not None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise

    def log_end(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
