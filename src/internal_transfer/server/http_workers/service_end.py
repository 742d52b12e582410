"""The service's end of the socket pair between it and an HTTP worker.

A submission reaches the gateway as a value. Every other request comes whole, and is answered by the application that
would answer it without workers. See `docs/decisions/0007-http-workers.md`.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Scope

from internal_transfer.api.problems import Header, Problems, log_failure
from internal_transfer.domain.transfer import OPEN
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.server.http_workers import messages
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import Gateway
from internal_transfer.wire.json_lines import Lines

_log = structlog.get_logger(__name__)


class ServiceEnd:
    """Answers one worker.

    What the worker asked for is finished even if the worker dies, so `tasks` outlives it. `ready` is called
    when the worker takes connections.
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
        self._gateway = gateway
        self._app = app
        self._problems = problems
        self._count = count
        self._ready = ready
        self._tasks = tasks
        self._waits: set[asyncio.Task[None]] = set()
        self._lines = Lines(msgspec.json.Decoder(messages.FromWorker).decode_lines, self._take)
        self._lines.lost.add_done_callback(self._end_waits)

    def protocol(self) -> asyncio.Protocol:
        """Returns the protocol for the service's socket."""
        return self._lines

    async def until_lost(self) -> None:
        """Answers until the worker has closed its end, or died."""
        await asyncio.shield(self._lines.lost)

    def stop(self) -> None:
        """Asks the worker to finish and end."""
        self._lines.send(messages.Stop())

    def _take(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Submission():
                self._gateway.offer(message.request).add_done_callback(partial(self._offered, message))
            case messages.Forwarded():
                self._tasks.create_task(self._answer(message))
            case messages.Counted():
                for route, outcome, code, number in message.counts:
                    self._count(route, outcome, code, number)
            case messages.Ready():
                self._ready()

    def _offered(self, submission: messages.Submission, done: asyncio.Future[Answer]) -> None:
        """Sends the gateway's answer, or what went wrong: no submission stays unanswered."""
        try:
            answer = done.result()
            transfer = answer.transfer
            is_open = answer.refusal is None and transfer is not None and transfer.status in OPEN
            if submission.wait_seconds <= 0 or not is_open:
                self._lines.send(messages.SubmissionAnswer(submission.number, answer))
            elif not self._lines.lost.done():
                task = self._tasks.create_task(self._wait(submission, answer))
                self._waits.add(task)
                task.add_done_callback(self._waits.discard)
        except OperatingFailureError as error:
            failure = messages.Failure(isinstance(error, OutcomeUnknown), error.system, error.message)
            self._lines.send(messages.SubmissionAnswer(submission.number, None, failure))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - one submission's outermost level.
            self._tell_fault(submission)

    async def _wait(self, submission: messages.Submission, answer: Answer) -> None:
        try:
            waited = await self._gateway.wait(answer, submission.wait_seconds)
            self._lines.send(messages.SubmissionAnswer(submission.number, waited))
        except Exception:  # noqa: BLE001 - as above; a failure here must not end the other tasks either.
            self._tell_fault(submission)

    def _tell_fault(self, submission: messages.Submission) -> None:
        _log.exception("order_failed", key=submission.request.key, caller=submission.request.caller)
        failure = messages.Failure(unknown=True, system=System.STORE, message="the service failed")
        self._lines.send(messages.SubmissionAnswer(submission.number, None, failure))

    def _end_waits(self, _: asyncio.Future[None]) -> None:
        for task in self._waits:
            task.cancel()

    async def _answer(self, request: messages.Forwarded) -> None:
        try:
            status, headers, body = await self._run(request)
        except Exception as error:  # noqa: BLE001 - one request's outermost level, as for requests that do not cross.
            log_failure(error, request.path)
            status, headers, body, _ = self._problems.failure(error, records=request.method not in messages.READING)
        self._lines.send(messages.ForwardedAnswer(request.number, status, headers, body))

    async def _run(self, request: messages.Forwarded) -> tuple[int, list[Header], bytes]:
        """Runs the application until it has sent its whole answer; returns status, headers and body."""
        unread = [request.body]
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

        await self._app(_scope(request), receive, send)
        assert is_complete, "the application answers"
        [start] = started
        return start["status"], [(bytes(name), bytes(value)) for name, value in start["headers"]], b"".join(parts)


def _scope(request: messages.Forwarded) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http",
        "method": request.method,
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query_string,
        "root_path": "",
        "headers": request.headers,
        "client": None,
        "server": None,
        "state": {},
    }
