"""Between HTTP worker processes and the process that holds the service.

A worker speaks HTTP, authenticates and decodes; a submission then crosses a socket pair as a value and its answer comes
back the same way. Every other request crosses whole and is answered by the application in the service's process, so
that services, ports and policy exist once. See `docs/decisions/0007-http-workers.md`.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internal_transfer.api.headers import Headers
from internal_transfer.api.problems import Header, Problems, Reply, log_failure
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.transfer import OPEN
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.server.http_workers.messages import (
    Counted,
    Failure,
    FromWorker,
    Lines,
    Order,
    Ready,
    Stop,
    Told,
    ToWorker,
    Whole,
    WholeAnswer,
)
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import Gateway

BODY_BYTES_MAX = 1024 * 1024
"""The largest body that crosses: no request may be larger. What is smaller the application judges, route by route."""
LARGE_BODIES_BYTES_MAX = 32 * 1024 * 1024
"""How much of bodies a worker holds at a time; past that it sheds requests whose bodies are large."""

_SMALL_BYTES = 16 * 1024
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_CLOSE: Header = (b"connection", b"close")
_log = structlog.get_logger(__name__)


class ServiceEnd:
    """The service's end of one worker's pair.

    What a worker asked for is finished although the worker dies meanwhile; `tasks` outlives it for that. `ready` is
    called when the worker takes connections.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        app: ASGIApp,
        problems: Problems,
        count: Callable[[str, str, str, float], None],
        ready: Callable[[], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.is_ready = False
        self._gateway = gateway
        self._app = app
        self._problems = problems
        self._count = count
        self._ready = ready
        self._tasks = tasks
        self._waits: set[asyncio.Task[None]] = set()
        self._lines = Lines(msgspec.json.Decoder(FromWorker).decode_lines, self._take)
        self._lines.lost.add_done_callback(self._end_waits)

    def protocol(self) -> asyncio.Protocol:
        """The protocol to connect to the pair."""
        return self._lines

    @property
    def is_lost(self) -> bool:
        """Tells whether the worker's end is gone."""
        return self._lines.lost.done()

    async def until_lost(self) -> None:
        """Answers until the worker has closed its end, or died."""
        await asyncio.shield(self._lines.lost)

    def stop(self) -> None:
        """Asks the worker to finish and end."""
        self._lines.send(Stop())

    def abort(self) -> None:
        """Gives the worker up."""
        self._lines.abort()

    def _take(self, message: FromWorker) -> None:
        match message:
            case Order():
                self._gateway.offer(message.request).add_done_callback(partial(self._offered, message))
            case Whole():
                self._tasks.create_task(self._answer_whole(message))
            case Counted():
                for route, outcome, code, number in message.counts:
                    self._count(route, outcome, code, number)
            case Ready():
                self.is_ready = True
                self._ready()

    def _offered(self, order: Order, done: asyncio.Future[Answer]) -> None:
        """Passes the gateway's answer on, or what went wrong: no order stays unanswered."""
        try:
            answer = done.result()
            transfer = answer.transfer
            if order.wait_seconds <= 0 or answer.refusal is not None or transfer is None or transfer.status not in OPEN:
                self._lines.send(Told(order.number, answer))
            elif not self.is_lost:
                task = self._tasks.create_task(self._wait(order, answer))
                self._waits.add(task)
                task.add_done_callback(self._waits.discard)
        except OperatingFailureError as error:
            failure = Failure(isinstance(error, OutcomeUnknown), error.system, error.message)
            self._lines.send(Told(order.number, None, failure))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - one order's outermost level.
            self._tell_fault(order)

    async def _wait(self, order: Order, answer: Answer) -> None:
        try:
            self._lines.send(Told(order.number, await self._gateway.wait(answer, order.wait_seconds)))
        except Exception:  # noqa: BLE001 - as above; a failure here must not end the other tasks either.
            self._tell_fault(order)

    def _tell_fault(self, order: Order) -> None:
        _log.exception("order_failed", key=order.request.key, caller=order.request.caller)
        failure = Failure(unknown=True, system=System.STORE, message="the service failed")
        self._lines.send(Told(order.number, None, failure))

    def _end_waits(self, _: asyncio.Future[None]) -> None:
        for task in self._waits:
            task.cancel()

    async def _answer_whole(self, whole: Whole) -> None:
        try:
            status, headers, body = await self._run(whole)
        except Exception as error:  # noqa: BLE001 - one request's outermost level, as for requests that do not cross.
            log_failure(error, whole.path)
            status, headers, body, _ = self._problems.failure(error, records=whole.method not in _READING)
        self._lines.send(WholeAnswer(whole.number, status, headers, body))

    async def _run(self, whole: Whole) -> tuple[int, list[Header], bytes]:
        """Runs the application on a request that came whole, until it has sent the whole of its answer."""
        unread = [whole.body]
        started: list[Message] = []
        parts: list[bytes] = []
        is_complete = False

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await self.until_lost()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal is_complete
            if message["type"] == "http.response.start":
                started.append(message)
            else:
                parts.append(message.get("body", b""))
                is_complete = not message.get("more_body", False)

        await self._app(_scope(whole), receive, send)
        assert is_complete, "the application answers"
        [start] = started
        return start["status"], [(bytes(name), bytes(value)) for name, value in start["headers"]], b"".join(parts)


def _scope(whole: Whole) -> Scope:
    return {
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


class WorkerEnd:
    """The worker's end: submits transfers as the gateway does, and forwards every other request.

    `waiting_most` requests may be out at a time. One whose client gave up counts until it is answered, so that a
    service that does not answer is not given ever more.
    """

    def __init__(
        self,
        *,
        problems: Problems,
        waiting_most: int,
        stop: Callable[[], None],
        bodies_most: int = LARGE_BODIES_BYTES_MAX,
    ) -> None:
        self._problems = problems
        self._waiting_most = waiting_most
        self._stop = stop
        self._bodies_most = bodies_most
        self._bodies_bytes = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._lines = Lines(msgspec.json.Decoder(ToWorker).decode_lines, self._take)
        self._lines.lost.add_done_callback(self._tell_loss)

    def protocol(self) -> asyncio.Protocol:
        """The protocol to connect to the pair."""
        return self._lines

    def close(self) -> None:
        """Closes the pair after everything that was said has gone out."""
        self._lines.close()

    def say_ready(self) -> None:
        """Tells that connections are taken."""
        self._lines.send(Ready())

    def say_counts(self, counts: list[tuple[str, str, str, float]]) -> None:
        """Tells what was answered here."""
        self._lines.send(Counted(counts))

    async def until_lost(self) -> None:
        """Waits until the pair is closed, from either end."""
        await asyncio.shield(self._lines.lost)

    async def submit(self, request: TransferRequest, *, wait_seconds: float) -> Answer:
        """As `Gateway.submit`, which answers at the other end."""
        if len(self._waiting) >= self._waiting_most:
            return Answer(refusal=_overloaded())
        number = self._number = self._number + 1
        answer: Answer = await self._ask(Order(number, request, wait_seconds))
        return answer

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application that has every request answered at the other end.

        Its answer is waited for as long as the service lives: deadlines are the application's, there as here.
        """
        assert scope["type"] == "http", "only requests come from the server"
        held = 0
        parts: list[bytes] = []
        try:
            # What says that it is too large is not asked to go on, which receiving would do (RFC 9110, 10.1.1).
            refused = self._refuse(_declared_bytes(scope))
            more = refused is None
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return
                part = message.get("body", b"")
                parts.append(part)
                held += len(part)
                self._bodies_bytes += len(part)
                refused = self._refuse(held)
                more = refused is None and message.get("more_body", False)
            if refused is not None:
                status, headers, body, _ = refused
            else:
                answer = await self._whole(scope, b"".join(parts))
                status, headers, body = answer.status, answer.headers, answer.body
        except OperatingFailureError as error:
            status, headers, body, _ = self._problems.failure(error, records=scope["method"] not in _READING)
        finally:
            self._bodies_bytes -= held
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refuse(self, held: int) -> Reply | None:
        """The reply where a body is too large, or where too much is waiting already."""
        if held > BODY_BYTES_MAX:
            return self._problems.request(413, "body", f"is larger than {BODY_BYTES_MAX} bytes", _CLOSE)
        crowded = held > _SMALL_BYTES and self._bodies_bytes > self._bodies_most
        if crowded or len(self._waiting) >= self._waiting_most:
            return self._problems.reply(_overloaded(), headers=(_CLOSE,))
        return None

    async def _whole(self, scope: Scope, body: bytes) -> WholeAnswer:
        number = self._number = self._number + 1
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        whole = Whole(number, scope["method"], scope["path"], scope["raw_path"], scope["query_string"], headers, body)
        answer: WholeAnswer = await self._ask(whole)
        return answer

    def _ask(self, question: Order | Whole) -> asyncio.Future[Any]:
        if self._lines.lost.done():
            raise OutcomeUnknown(System.STORE, "the service has ended")
        self._lines.send(question)
        waiting = self._waiting[question.number] = asyncio.get_running_loop().create_future()
        return waiting

    def _take(self, message: ToWorker) -> None:
        match message:
            case Told():
                waiting = self._waiting.pop(message.number)
                if waiting.done():  # Whoever asked has given up.
                    return
                if message.failure is not None:
                    waiting.set_exception(message.failure.error())
                else:
                    assert message.outcome is not None, "an order is answered or it fails"
                    waiting.set_result(message.outcome)
            case WholeAnswer():
                waiting = self._waiting.pop(message.number)
                if not waiting.done():
                    waiting.set_result(message)
            case Stop():
                self._stop()

    def _tell_loss(self, _: asyncio.Future[None]) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(OutcomeUnknown(System.STORE, "the service ended before it answered"))
        self._waiting.clear()


def _declared_bytes(scope: Scope) -> int:
    """How large the body says it is; 0 where it says nothing."""
    declared = Headers(scope["headers"]).get(b"content-length")
    return int(declared[:20]) if declared is not None and declared.isdigit() else 0


def _overloaded() -> Refusal:
    return Refusal(Code.SYSTEM_OVERLOADED, "too many requests are waiting", retry_after_seconds=1.0)
