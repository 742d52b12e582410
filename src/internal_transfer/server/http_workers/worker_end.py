"""A worker's end of the socket pair between it and the service.

See `docs/decisions/0007-http-workers.md`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from internal_transfer.api.headers import Headers
from internal_transfer.api.problems import CLOSE, Problems, Reply
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.server.http_workers import messages
from internal_transfer.services.answer import Answer
from internal_transfer.wire.json_lines import Lines

BODY_BYTES_MAX = 1024 * 1024
"""The largest body that is forwarded. The application in the service refuses smaller ones, route by route."""
LARGE_BODIES_BYTES_MAX = 32 * 1024 * 1024
"""How many bytes of bodies a worker holds at a time; beyond that it sheds requests whose bodies are large."""

_SMALL_BYTES = 16 * 1024


class WorkerEnd:
    """Submits transfers as the gateway does, and forwards every other request.

    `waiting_most` requests may be out at a time. A request whose client gave up counts until it is answered, so
    that a service that does not answer is not sent more and more.
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
        self._told: Mapping[tuple[str, str, str], float] = {}
        self._lines = Lines(msgspec.json.Decoder(messages.ToWorker).decode_lines, self._take)
        self._lines.lost.add_done_callback(self._tell_loss)

    def protocol(self) -> asyncio.Protocol:
        """Returns the protocol for the worker's socket."""
        return self._lines

    def close(self) -> None:
        """Closes the pair after everything that was sent has gone out."""
        self._lines.close()

    def tell_ready(self) -> None:
        """Tells the service that this worker takes connections."""
        self._lines.send(messages.Ready())

    def tell_counts(self, totals: Mapping[tuple[str, str, str], float]) -> None:
        """Tells the service how much these totals, by (route, outcome, code), grew since the last call."""
        told, self._told = self._told, dict(totals)
        counts = [(*labels, more) for labels, total in totals.items() if (more := total - told.get(labels, 0.0)) > 0.0]
        if counts:
            self._lines.send(messages.Counted(counts))

    async def until_lost(self) -> None:
        """Waits until the pair is closed, from either end."""
        await asyncio.shield(self._lines.lost)

    async def submit(self, request: TransferRequest, *, wait_seconds: float) -> Answer:
        """Submits a transfer to the service's gateway; see `Gateway.submit`."""
        if len(self._waiting) >= self._waiting_most:
            return Answer(refusal=_overloaded())
        number = self._number = self._number + 1
        answer: Answer = await self._ask(messages.Submission(number, request, wait_seconds))
        return answer

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a request answered by the service, as an ASGI application.

        Waits for the answer while the service lives: the application there has the deadlines.
        """
        assert scope["type"] == "http", "only requests come from the server"
        held = 0
        parts: list[bytes] = []
        try:
            # A client that declares too much must not be told to go on, which receiving does (RFC 9110, 10.1.1).
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
                answer = await self._forwarded(scope, b"".join(parts))
                status, headers, body = answer.status, answer.headers, answer.body
        except OperatingFailureError as error:
            status, headers, body, _ = self._problems.failure(error, records=scope["method"] not in messages.READING)
        finally:
            self._bodies_bytes -= held
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refuse(self, held: int) -> Reply | None:
        """Returns a reply if the body is too large, or if too much is waiting already."""
        if held > BODY_BYTES_MAX:
            return self._problems.request(413, "body", f"is larger than {BODY_BYTES_MAX} bytes", CLOSE)
        crowded = held > _SMALL_BYTES and self._bodies_bytes > self._bodies_most
        if crowded or len(self._waiting) >= self._waiting_most:
            return self._problems.reply(_overloaded(), headers=(CLOSE,))
        return None

    async def _forwarded(self, scope: Scope, body: bytes) -> messages.ForwardedAnswer:
        number = self._number = self._number + 1
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        answer: messages.ForwardedAnswer = await self._ask(
            messages.Forwarded(
                number, scope["method"], scope["path"], scope["raw_path"], scope["query_string"], headers, body
            )
        )
        return answer

    def _ask(self, question: messages.Submission | messages.Forwarded) -> asyncio.Future[Any]:
        if self._lines.lost.done():
            raise OutcomeUnknown(System.STORE, "the service has ended")
        self._lines.send(question)
        waiting = self._waiting[question.number] = asyncio.get_running_loop().create_future()
        return waiting

    def _take(self, message: messages.ToWorker) -> None:
        match message:
            case messages.SubmissionAnswer():
                waiting = self._waiting.pop(message.number)
                if waiting.done():  # Its client has given up.
                    return
                if message.failure is not None:
                    waiting.set_exception(message.failure.error())
                else:
                    assert message.answer is not None, "a submission is answered or it fails"
                    waiting.set_result(message.answer)
            case messages.ForwardedAnswer():
                waiting = self._waiting.pop(message.number)
                if not waiting.done():
                    waiting.set_result(message)
            case messages.Stop():
                self._stop()

    def _tell_loss(self, _: asyncio.Future[None]) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(OutcomeUnknown(System.STORE, "the service ended before it answered"))
        self._waiting.clear()


def _declared_bytes(scope: Scope) -> int:
    """Returns the body's declared length; 0 if none is declared."""
    declared = Headers(scope["headers"]).get(b"content-length")
    return int(declared[:20]) if declared is not None and declared.isdigit() else 0


def _overloaded() -> Refusal:
    return Refusal(Code.SYSTEM_OVERLOADED, "too many requests are waiting", retry_after_seconds=1.0)
