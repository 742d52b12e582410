"""The HTTP server: uvicorn with uvloop and httptools, and bounds on what a connection may take.

uvicorn keeps half-sent headers for ever, does not bound their size, and refuses connections without a problem. The
protocol here requires every request to be complete within a deadline that starts with its first byte.
"""

import asyncio
import contextlib
import gc
import socket
from asyncio import BaseTransport, TimerHandle
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any, Self, TypeVar

import uvicorn
import uvloop
from msgspec import Struct
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from internal_transfer.api.problems import Problems, Reply
from internal_transfer.domain.refusal import Code, Refusal, Retry
from internal_transfer.ports.clock import Clock
from internal_transfer.server.sockets import BACKLOG
from internal_transfer.settings.settings import Server

Returned = TypeVar("Returned")


class Bounds(Struct, frozen=True, kw_only=True):
    """What a connection may take.

    `request_seconds`: for the headers and body of one request, and for the first byte on a new connection.
    `idle_seconds`: between requests. `stop_seconds`: for what was accepted before a stop.
    """

    request_seconds: float = 10.0
    idle_seconds: int = 75
    head_bytes_most: int = 16 * 1024
    connections_most: int = 4096
    stop_seconds: int = 45

    @classmethod
    def of(cls, server: Server) -> Self:
        """Returns the bounds that the settings give."""
        return cls(request_seconds=server.receive_deadline_seconds, connections_most=server.connections_max)


class _HeadTooLargeError(Exception):
    """The request line and headers are larger than allowed."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a deadline for each request, a bound on its head, and problems for its errors.

    A request that arrives whole, as nearly all do, costs no timer.
    """

    def __init__(self, *args: Any, bounds: Bounds, problems: Problems, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._bounds = bounds
        self._problems = problems
        self._deadline: TimerHandle | None = None
        self._silent = True
        self._whole = False
        self._head_complete = False
        self._head_is_too_large = False
        # Of the incomplete head; of the piece being parsed; of that piece after its last whole request, or 0 if that
        # cannot be known.
        self._head_bytes = self._piece_bytes = self._rest_bytes = 0

    def connection_made(self, transport: BaseTransport) -> None:
        """Refuses the connection if there are too many, else starts the deadline of its first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._bounds.connections_most:
            refusal = Refusal(Code.SYSTEM_OVERLOADED, "there are too many connections")
            self._refuse(self._problems.reply(refusal))
            return
        self._begin_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the deadline."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses a piece; afterwards a request that is still incomplete has a deadline running."""
        if self.transport.is_closing():
            return
        self._silent = self._whole = False
        self._piece_bytes = self._rest_bytes = len(data)
        super().data_received(data)
        if self._whole or self.transport.is_closing():
            return
        if not self._head_complete:
            self._head_bytes += self._rest_bytes
            if self._head_bytes > self._bounds.head_bytes_most:
                self._refuse(self._head_too_large())
                return
        if self._deadline is None:
            self._begin_deadline()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._whole = self._head_complete = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Starts the request, unless its head is too large."""
        self._head_complete = True
        if self._head_bytes + self._piece_bytes > self._bounds.head_bytes_most:
            # The piece may hold a body or other requests too, so now the head itself is measured.
            head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head_bytes > self._bounds.head_bytes_most:
                self._head_is_too_large = True
                raise _HeadTooLargeError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends the deadline of a request that is whole."""
        self._whole = True
        self._head_bytes = self._rest_bytes = 0
        if self._deadline is not None:
            self._end_deadline()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are no problem document.
        """Refuses what cannot be parsed, with a problem."""
        if self._head_is_too_large:
            self._refuse(self._head_too_large())
        else:
            self._refuse(self._problems.request(400, "request", "is not well-formed HTTP"))

    def _head_too_large(self) -> Reply:
        return self._problems.request(431, "headers", f"are larger than {self._bounds.head_bytes_most} bytes")

    def _begin_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._bounds.request_seconds, self._on_deadline)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self.pipeline or (cycle is not None and not cycle.response_complete and not cycle.more_body):
            # An earlier request is still being answered, so this one's pace does not matter yet.
            self._begin_deadline()
        elif self._silent:
            # A connection that never asked for anything is closed without an answer.
            self.transport.close()
        else:
            self._refuse(self._problems.request(408, "request", "did not arrive in time", retry=Retry.SAME_KEY))

    def _refuse(self, reply: Reply) -> None:
        """Answers in the application's place and closes the connection.

        If a whole request is still to be answered, its answer goes out instead before the connection closes: two
        answers must not mix.
        """
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            # The application waits for the rest of a body that will not come.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        lines = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers, (b"connection", b"close")):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n", reply.body)
        self.transport.write(b"".join(lines))
        self.transport.close()


def run_on_uvloop(main: Coroutine[Any, Any, Returned]) -> Returned:
    """Runs a coroutine on a new loop, which is left open until the process ends.

    uvloop's `close()` waits until libuv has closed every handle. Under load it was seen to wait for ever, after a
    connection had been cut off whose peer was still sending. A server that has finished must not hang there.
    """
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main)


def calm_collector() -> None:
    """Has the garbage collector ignore what the start made, and run seldom: the hot path makes few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class HttpServer(uvicorn.Server):
    """One listening socket with its application.

    It does nothing about signals: they belong to the process, which has more than one server.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, *, clock: Clock, bounds: Bounds | None = None) -> None:
        bounds = bounds or Bounds()
        protocol: Any = partial(BoundedProtocol, bounds=bounds, problems=Problems(clock))
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            loop="uvloop",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=bounds.idle_seconds,
            timeout_graceful_shutdown=bounds.stop_seconds,
        )
        super().__init__(config)
        self._listener = listener

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    async def run_until_stopped(self) -> None:
        """Serves until `stop()`, and then until what was accepted is answered, for at most `stop_seconds`."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Takes no more connections and requests, and ends `run_until_stopped` when the last one is answered."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield
