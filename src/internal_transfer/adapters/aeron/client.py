"""One thread that owns an Aeron client, and the bounded ways between it and the event loop.

The thread sends what waits, polls every subscription, and idles when there is nothing to do. When the media driver is
lost, it fails what waits and connects again until the driver is back. Aeron keeps nothing: what was sent while nobody
listened, or was on its way when a driver died, is lost, and a caller that needs an answer asks again.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from internal_transfer.adapters.aeron.settings import DEFAULT_BOUNDS, AeronConnection, Bounds, load_library
from internal_transfer.adapters.aeron.streams import Done, Inlet, Offer, Outlet
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable

_log = structlog.get_logger(__name__)


class AeronClient:
    """The client of one process. Outlets and inlets are declared first; then `start`; `close` ends the thread."""

    def __init__(self, connection: AeronConnection, *, clock: Clock, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self.connection = connection
        self.bounds = bounds
        self._clock = clock
        self._outlets: list[Outlet] = []
        self._inlets: list[Inlet] = []
        self._incoming: deque[Offer] = deque()
        self._waiting = 0
        self._failure: str | None = "not started"
        self._refused: str | None = None
        self._was_connected = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._first: asyncio.Future[None] | None = None

    @property
    def failure(self) -> str | None:
        """Why there is no connection to the media driver; None where there is one."""
        return self._failure

    def outlet(self, channel: str, stream: int, system: System, *, exclusive: bool = False) -> Outlet:
        """Declares a publication, and the system to blame when it takes nothing.

        An exclusive one is a separate source; all others on one channel of a driver share one source.
        """
        assert self._thread is None, "declared after the start"
        self._outlets.append(Outlet(channel, self.connection.first_stream + stream, system, exclusive=exclusive))
        return self._outlets[-1]

    def inlet(self, channel: str, stream: int, on_ready: Callable[[], None]) -> Inlet:
        """Declares a subscription."""
        assert self._thread is None, "declared after the start"
        stream += self.connection.first_stream
        self._inlets.append(Inlet(channel, stream, most=self.bounds.messages_most, on_ready=on_ready))
        return self._inlets[-1]

    async def start(self) -> None:
        """Starts the thread and waits for the first attempt to connect.

        Without a media driver it starts all the same: the thread goes on trying, and offers are `Unavailable` until
        there is one. Raises `StartRefusedError` where the library is missing or the driver refuses a channel.
        """
        assert self._thread is None, "started already"
        library = load_library()
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._thread = threading.Thread(target=self._work, args=(library, loop), name="aeron", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(self.bounds.start_seconds):
                await self._first
        except TimeoutError:
            _log.warning("aeron_not_connected", reason=self._failure)
        if self._refused is not None:
            await self.close()
            raise StartRefusedError(f"Aeron refuses the channels in the settings: {self._refused}")

    async def close(self) -> None:
        """Ends the thread; what still waits to be sent fails."""
        if self._thread is not None:
            self._closing.set()
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            self._failure = "closed"
            self._fail_all(asyncio.get_running_loop())

    async def offer(self, outlet: Outlet, messages: Sequence[bytes], *, seconds: float | None = None) -> None:
        """Hands messages to the media driver, in order; returns when it has taken all of them.

        Tries for `seconds` (else `Bounds.offer_seconds`) while the other side is slow or away. Then, and when the media
        driver is lost, raises `Unavailable` where the driver has taken none of them, else `OutcomeUnknown`. A message
        that it has taken may still not reach the other side.
        """
        if not messages:
            return
        if self._failure is not None:
            raise Unavailable(outlet.system, f"no Aeron media driver: {self._failure}")
        if self._waiting + len(messages) > self.bounds.messages_most:
            raise Unavailable(outlet.system, f"{self._waiting} messages wait for Aeron to take them")
        largest = max(map(len, messages))
        if 0 < outlet.message_bytes_max < largest:
            raise Unavailable(
                outlet.system,
                f"a message of {largest} bytes does not fit in {outlet.channel}: at most {outlet.message_bytes_max}; "
                "a larger term-length allows more",
            )
        deadline = self._clock.monotonic() + (self.bounds.offer_seconds if seconds is None else seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting += len(messages)
        self._incoming.append(Offer(outlet, messages, deadline, future))
        try:
            await future
        finally:
            self._waiting -= len(messages)

    # What follows runs in the client's thread.

    def _work(self, library: Any, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while not self._closing.is_set():
                self._session(library, loop)
                self._fail_all(loop)
                self._closing.wait(self.bounds.pause_seconds)
            self._failure = "closed"
        except _LoopClosedError:
            _log.warning("aeron_client_not_closed")
        finally:
            # Even if a bug ends the thread, so that nobody waits for it for ever.
            self._failure = self._failure or "the client's thread has ended"
            with suppress(_LoopClosedError):
                self._fail_all(loop)

    def _session(self, library: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Connects and works until the driver is lost or the client is closed."""
        errors: list[str] = []
        connection = self.connection
        directory = connection.directory or library.default_path()
        aeron: Any = None
        try:
            if not library.is_driver_active(directory, round(connection.driver_seconds * 1000)):
                self._fail(loop, f"none is running in {directory}")
                return
            context = library.Context(
                dir=directory,
                client_name=connection.client_name,
                driver_timeout_ms=round(connection.driver_seconds * 1000),
                # Without a handler the client ends the whole process when it loses the driver.
                error_handler=lambda *error: errors.append(": ".join(map(str, error))),
            )
            aeron = library.Aeron(context=context)
            for outlet in self._outlets:
                outlet.open(aeron)
            for inlet in self._inlets:
                inlet.open(aeron)
            self._failure = None
            self._was_connected = True
            _log.info("aeron_connected", directory=directory)
            self._call(loop, self._tried)
            self._pump(aeron, loop, library.IdleStrategy.backoff())
            if not self._closing.is_set():
                self._fail(loop, errors[-1] if errors else "the media driver was lost")
        except library.DriverTimeout as error:
            self._fail(loop, _said(error))
        except library.AeronError as error:
            if not self._was_connected and aeron is not None and not aeron.is_closed:
                self._refused = _said(error)
            self._fail(loop, errors[-1] if errors else _said(error))
        finally:
            for outlet in self._outlets:
                outlet.close()
            for inlet in self._inlets:
                inlet.close()
            if aeron is not None:
                with suppress(library.AeronError):
                    aeron.close()

    def _pump(self, aeron: Any, loop: asyncio.AbstractEventLoop, idle: Any) -> None:
        done: list[Done] = []
        ready: list[Inlet] = []
        try:
            while not self._closing.is_set() and not aeron.is_closed:
                work = self._turn(done, ready)
                if done or ready:
                    self._call(loop, _report, done, ready)
                    done, ready = [], []
                idle.idle(work)
        finally:
            if done or ready:
                self._call(loop, _report, done, ready)

    def _turn(self, done: list[Done], ready: list[Inlet]) -> int:
        """Sends and polls once; what is done or ready goes into the lists."""
        self._sort()
        now = self._clock.monotonic()
        work = 0
        for outlet in self._outlets:
            work += outlet.send(now, done)
        for inlet in self._inlets:
            polled, announce = inlet.poll(self.bounds.fragments_most)
            work += polled
            if announce:
                ready.append(inlet)
        return work

    def _sort(self) -> None:
        """Gives every offer to its outlet."""
        while self._incoming:
            offer = self._incoming.popleft()
            offer.outlet.waiting.append(offer)

    def _fail(self, loop: asyncio.AbstractEventLoop, reason: str) -> None:
        if reason != self._failure:
            _log.warning("aeron_lost", reason=reason)
        self._failure = reason
        self._call(loop, self._tried)

    def _fail_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fails everything that waits when there is no driver."""
        self._sort()
        done = [failed for outlet in self._outlets for failed in outlet.fail("the Aeron media driver was lost")]
        if done:
            self._call(loop, _report, done, [])

    def _call(self, loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:
            raise _LoopClosedError from error

    def _tried(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(None)


class _LoopClosedError(Exception):
    """The event loop ended before the client was closed."""


def _report(done: Sequence[Done], ready: Sequence[Inlet]) -> None:
    """In the event loop: wakes those who wait for an offer, and the owners of inlets that received something."""
    for future, failure in done:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
    for inlet in ready:
        inlet.ready()


def _said(error: Exception) -> str:
    """The message of the client and the driver, without the places in their sources that they add in brackets."""
    texts = [line.rpartition("] ")[2] if line.startswith("[") else line for line in str(error).splitlines()]
    said = [text.strip() for text in dict.fromkeys(texts) if not text.startswith(("(", " ("))]
    return "; ".join(filter(None, said)) or texts[0]
