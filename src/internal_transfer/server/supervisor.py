"""How a process of the service ends, and how it keeps the processes that it starts running."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

from internal_transfer.ports.errors import StartRefusedError

READY_LINE = "internal-transfer is ready on "
"""The beginning of the line that a process prints when it is ready; the rest says where."""
START_SECONDS = 60.0
AGAIN_SECONDS = 1.0
STEADY_SECONDS = 1.0
"""A child that was ready for this long is replaced at once: its start was not what killed it."""
END_SECONDS = 2.0
"""How long a child may take to end after it has closed its connection to this process."""

_log = structlog.get_logger(__name__)


class ServiceFailedError(Exception):
    """A part of the service failed, so the whole service has ended; the log has the details."""


def told_to_stop() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set from now on, instead of their usual effect."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def reason_of(failed: ExceptionGroup) -> Exception:
    """Returns why the service ended: the refused start, if there is one; else every failure is logged."""
    refused, others = failed.split(StartRefusedError)
    if refused is not None:
        return next(_leaves(refused))
    assert others is not None, "a group is not empty"
    causes = list(_leaves(others))
    for cause in causes:
        _log.error("service_failed", error=repr(cause), exc_info=cause)
    return ServiceFailedError(f"the service failed and has ended: {causes[0]!r}; the log has more")


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Child(Protocol):
    """One run of a process that is kept running."""

    async def start(self) -> asyncio.subprocess.Process:
        """Starts the process; raises `OSError`."""
        ...

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        """Talks with the process until it has closed its end of the connection."""
        ...

    def ask_to_stop(self, process: asyncio.subprocess.Process) -> None:
        """Asks the process to finish what it accepted and end; may raise `ProcessLookupError`."""
        ...


class Supervisor:
    """Keeps `count` children running until `stop`.

    `launch` gets a child's number, from 0, and what the child calls when it is ready. A child that ends before its
    number was ever ready refuses the start, unless somebody sent it SIGTERM. Later, a child that was ready for
    `STEADY_SECONDS` is replaced at once, any other after `AGAIN_SECONDS`. A child that does not stop within
    `stop_seconds` is killed.

    `name` is for messages, and in lower case for events in the log; `advice` ends a refusal.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[int, Callable[[], None]], Child],
        *,
        count: int,
        stop_seconds: float,
        advice: str = "see the log",
    ) -> None:
        self._name = name
        self._event = name.lower().replace(" ", "_")
        self._launch = launch
        self._stop_seconds = stop_seconds
        self._advice = advice
        self._stopping = asyncio.Event()
        self._started = [asyncio.Event() for _ in range(count)]
        self._ready: set[int] = set()

    @property
    def is_any_ready(self) -> bool:
        """Tells whether at least one child is ready now."""
        return bool(self._ready)

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Starts the children; each task ends when its child has ended after `stop`, or raises `StartRefusedError`."""
        return [tasks.create_task(self._keep(number)) for number in range(len(self._started))]

    async def ready(self) -> None:
        """Waits until every child has been ready; raises `StartRefusedError` after `START_SECONDS`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                for started in self._started:
                    await started.wait()
        except TimeoutError as error:
            number = next(number for number, started in enumerate(self._started) if not started.is_set())
            raise self._refused(number, f"was not ready in {START_SECONDS:g} s") from error

    def stop(self) -> None:
        """Asks all children to stop."""
        self._stopping.set()

    async def _keep(self, number: int) -> None:
        while not self._stopping.is_set():
            code, ready_seconds = await self._run(number)
            if self._stopping.is_set():
                return
            if not self._started[number].is_set() and code != -signal.SIGTERM:
                raise self._refused(number, f"ended with {code} before it was ready")
            (_log.error if code else _log.info)(f"{self._event}_ended", process=number + 1, code=code)
            if ready_seconds < STEADY_SECONDS:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_SECONDS):
                        await self._stopping.wait()

    async def _run(self, number: int) -> tuple[int, float]:
        """Runs a child until it has ended; returns its exit code, and for how long it was ready."""
        now = asyncio.get_running_loop().time
        since: float | None = None

        def ready() -> None:
            nonlocal since
            since = now()
            self._ready.add(number)
            self._started[number].set()

        child = self._launch(number, ready)
        try:
            process = await child.start()
        except OSError as error:
            _log.error(f"{self._event}_not_started", process=number + 1, error=str(error))
            return error.errno or 1, 0.0
        try:
            async with asyncio.TaskGroup() as tasks:
                attending = tasks.create_task(child.attend(process))
                ended = tasks.create_task(process.wait())
                stopping = tasks.create_task(self._stopping.wait())
                await asyncio.wait((attending, ended, stopping), return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    with contextlib.suppress(ProcessLookupError):  # It ended in this very moment.
                        child.ask_to_stop(process)
                    await asyncio.wait(
                        (attending, ended), timeout=self._stop_seconds, return_when=asyncio.FIRST_COMPLETED
                    )
                self._ready.discard(number)
                if attending.done():
                    await asyncio.wait((ended,), timeout=END_SECONDS)
                if not ended.done():
                    _log.warning(f"{self._event}_killed", process=number + 1, pid=process.pid)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                code = await ended
                stopping.cancel()
        finally:
            self._ready.discard(number)
            if process.returncode is None:
                process.kill()
                await process.wait()
        return code, 0.0 if since is None else now() - since

    def _refused(self, number: int, what: str) -> StartRefusedError:
        return StartRefusedError(f"{self._name} {number + 1} {what}; {self._advice}")
