"""Between HTTP worker processes and the process that holds the service.

A worker speaks HTTP, authenticates and decodes; a submission then crosses a socket pair as a value and its answer comes
back the same way. Every other request crosses whole and is answered by the application in the service's process, so
that services, ports and policy exist once. Messages are lines of JSON, many per write: whatever came in during one
turn of the loop goes out together. Both ends trust each other; they are one program.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import msgspec
import structlog
from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import OPEN
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import Gateway

LINE_BYTES_MAX = 64 * 1024 * 1024
_BODY_BYTES_MAX = 1024 * 1024
_log = structlog.get_logger(__name__)


class Order(Struct, frozen=True, array_like=True, tag=True):
    """A submission."""

    number: int
    request: TransferRequest
    wait_seconds: float


class Whole(Struct, frozen=True, array_like=True, tag=True):
    """A request that is answered elsewhere: the parts of its ASGI scope, and its body."""

    number: int
    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Counted(Struct, frozen=True, array_like=True, tag=True):
    """Requests that the worker answered since it last said so: (route, outcome, code, how many)."""

    counts: list[tuple[str, str, str, float]]


class Ready(Struct, frozen=True, array_like=True, tag=True):
    """The worker takes connections."""


class Told(Struct, frozen=True, array_like=True, tag=True):
    """The answer to an order, or the failure of a system: (is the outcome unknown, system, message)."""

    number: int
    answer: Answer | None
    failure: tuple[bool, System, str] | None


class WholeAnswer(Struct, frozen=True, array_like=True, tag=True):
    """The answer to a whole request."""

    number: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Stop(Struct, frozen=True, array_like=True, tag=True):
    """Take no more connections, answer what was taken, and end."""


FromWorker: TypeAlias = Order | Whole | Counted | Ready
ToWorker: TypeAlias = Told | WholeAnswer | Stop


class _Lines(asyncio.Protocol):
    """One end of the pair: lines of JSON arrays of messages, written once per turn of the loop."""

    def __init__(self, decode: Callable[[bytes], list[Any]], take: Callable[[Any], None]) -> None:
        self._decode = decode
        self._take = take
        self._encode = msgspec.json.Encoder().encode
        self._rest = b""
        self._outgoing: list[FromWorker | ToWorker] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.

    def data_received(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        assert len(self._rest) <= LINE_BYTES_MAX, "the other end never ends its line"
        for line in lines:
            for message in self._decode(line):
                self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - that it is lost is all there is to know.
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, message: FromWorker | ToWorker) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(self._encode(messages) + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ServiceEnd:
    """The service's end of one worker's pair."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        app: ASGIApp,
        count: Callable[[str, str, str, float], None],
        ready: asyncio.Event,
    ) -> None:
        self._gateway = gateway
        self._app = app
        self._count = count
        self._lines = _Lines(msgspec.json.Decoder(list[FromWorker]).decode, self._take)
        self._tasks: asyncio.TaskGroup
        self._ready = ready

    def protocol(self) -> asyncio.Protocol:
        """The protocol to connect to the pair."""
        return self._lines

    async def run(self) -> None:
        """Answers until the worker has closed its end."""
        async with asyncio.TaskGroup() as self._tasks:
            await self._lines.closed

    def stop(self) -> None:
        """Asks the worker to finish and end."""
        self._lines.send(Stop())

    def _take(self, message: FromWorker) -> None:
        match message:
            case Order():
                offered = self._gateway.offer(message.request)
                offered.add_done_callback(lambda done: self._offered(message, done))
            case Whole():
                self._tasks.create_task(self._whole(message))
            case Counted():
                for route, outcome, code, count in message.counts:
                    self._count(route, outcome, code, count)
            case Ready():
                self._ready.set()

    def _offered(self, order: Order, done: asyncio.Future[Answer]) -> None:
        error = done.exception()
        if error is None:
            answer = done.result()
            transfer = answer.transfer
            if order.wait_seconds > 0 and answer.refusal is None and transfer is not None and transfer.status in OPEN:
                self._tasks.create_task(self._wait(order, answer))
            else:
                self._lines.send(Told(order.number, answer, None))
            return
        assert isinstance(error, OperatingFailureError), f"the gateway fails only as it says: {error!r}"
        failure = (isinstance(error, OutcomeUnknown), error.system, error.message)
        self._lines.send(Told(order.number, None, failure))

    async def _wait(self, order: Order, answer: Answer) -> None:
        self._lines.send(Told(order.number, await self._gateway.wait(answer, order.wait_seconds), None))

    async def _whole(self, whole: Whole) -> None:
        """Runs the application on a request that came whole."""
        unread = [whole.body]
        answer: dict[str, Any] = {"status": 500, "headers": []}
        parts: list[bytes] = []

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.update(status=message["status"], headers=[tuple(header) for header in message["headers"]])
            else:
                parts.append(message.get("body", b""))

        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": whole.method,
            "path": whole.path,
            "raw_path": whole.raw_path,
            "query_string": whole.query_string,
            "root_path": "",
            "headers": whole.headers,
            "client": None,
            "server": None,
            "state": {},
        }
        try:
            await self._app(scope, receive, send)
        except Exception:  # noqa: BLE001 - see below.
            # The application answers its own failures; one that escapes it must not take every worker's door down.
            _log.exception("request_failed", path=whole.path)
        self._lines.send(WholeAnswer(whole.number, answer["status"], answer["headers"], b"".join(parts)))


class WorkerEnd:
    """The worker's end: stands for the gateway, and for every path that the worker does not answer itself."""

    def __init__(self, rules: Rules, *, waiting_most: int, stop: Callable[[], None]) -> None:
        self.rules = rules
        self._waiting_most = waiting_most
        self._stop = stop
        self._lines = _Lines(msgspec.json.Decoder(list[ToWorker]).decode, self._take)
        self._orders: dict[int, asyncio.Future[Answer]] = {}
        self._wholes: dict[int, asyncio.Future[WholeAnswer]] = {}
        self._number = 0

    def protocol(self) -> asyncio.Protocol:
        """The protocol to connect to the pair."""
        return self._lines

    def close(self) -> None:
        """Closes the pair."""
        self._lines.close()

    def say_ready(self) -> None:
        """Tells that connections are taken."""
        self._lines.send(Ready())

    def say_counts(self, counts: list[tuple[str, str, str, float]]) -> None:
        """Tells what was answered here."""
        self._lines.send(Counted(counts))

    async def until_lost(self) -> None:
        """Waits until the service's end is gone; whoever waits for an answer is told that it is unknown."""
        await self._lines.closed
        everyone: list[asyncio.Future[Any]] = [*self._orders.values(), *self._wholes.values()]
        for waiting in everyone:
            if not waiting.done():
                waiting.set_exception(OutcomeUnknown(System.STORE, "the service ended before it answered"))

    async def submit(self, request: TransferRequest, *, wait_seconds: float) -> Answer:
        """As `Gateway.submit`, which answers at the other end."""
        if len(self._orders) >= self._waiting_most:
            refusal = Refusal(Code.SYSTEM_OVERLOADED, "too many requests are waiting", retry_after_seconds=1.0)
            return Answer(refusal=refusal)
        if self._lines.closed.done():
            raise Unavailable(System.STORE, "the service has ended")
        number, waiting = self._next(self._orders)
        self._lines.send(Order(number, request, wait_seconds))
        try:
            answer: Answer = await waiting
            return answer
        finally:
            del self._orders[number]

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application that has every request answered at the other end."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            # What is too large is refused by the application itself; it need not see all of it for that.
            if not message.get("more_body", False) or len(body) > _BODY_BYTES_MAX:
                break
        number, waiting = self._next(self._wholes)
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        self._lines.send(
            Whole(number, scope["method"], scope["path"], scope["raw_path"], scope["query_string"], headers, body)
        )
        try:
            answer = await waiting
        finally:
            del self._wholes[number]
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _next(self, waiting: dict[int, Any]) -> tuple[int, asyncio.Future[Any]]:
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting[self._number] = future
        return self._number, future

    def _take(self, message: ToWorker) -> None:
        match message:
            case Told():
                order = self._orders.get(message.number)
                if order is None or order.done():
                    return
                if message.answer is not None:
                    order.set_result(message.answer)
                    return
                assert message.failure is not None, "an order is answered or it fails"
                unknown, system, text = message.failure
                order.set_exception((OutcomeUnknown if unknown else Unavailable)(system, text))
            case WholeAnswer():
                whole = self._wholes.get(message.number)
                if whole is not None and not whole.done():
                    whole.set_result(message)
            case Stop():
                self._stop()
