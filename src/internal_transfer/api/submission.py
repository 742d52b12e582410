"""The submission of a transfer: the one endpoint that an HTTP worker answers itself.

The order of a request's checks: path, method, credentials, query syntax, media types, size, idempotency key, body, and
then the service. Credentials are checked before the body is read, so that strangers cause no work.

The endpoint speaks ASGI itself, because a framework around the POST would be the largest single cost of a transfer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from internal_transfer.api.authentication import Authenticator, Caller
from internal_transfer.api.decode import BODY_BYTES_MAX, decode, read_body
from internal_transfer.api.headers import (
    JSON,
    WAIT_SECONDS_DEFAULT,
    Headers,
    accepted,
    idempotency_key,
    is_json,
    preferred_wait,
)
from internal_transfer.api.history import parse_pairs
from internal_transfer.api.paths import TRANSFER_PREFIX, TRANSFERS
from internal_transfer.api.problems import CLOSE, Header, Problems, Reply, log_failure, outcome_of
from internal_transfer.api.render import Renderer
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.request import TransferRequest
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.clock import Clock
from internal_transfer.services.answer import Answer
from internal_transfer.settings.settings import Settings
from internal_transfer.telemetry import Telemetry

NO_PARAMETERS: frozenset[str] = frozenset()
JSON_TYPE: Header = (b"content-type", JSON)

_DEADLINE_SECONDS = 20.0
_REPLAYED: Header = (b"idempotent-replayed", b"true")
_PREFIX_BYTES = TRANSFER_PREFIX.encode()


class Submitter(Protocol):
    """Accepts transfers: the gateway, or in an HTTP worker the connection to it."""

    async def submit(self, request: TransferRequest, *, wait_seconds: float) -> Answer:
        """Accepts a transfer and waits up to `wait_seconds` for its end; raises `OperatingFailureError`."""
        ...


class Call:
    """One request on its way to its endpoint."""

    __slots__ = ("caller", "headers", "query_string", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, headers: Headers, caller: Caller) -> None:
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.caller = caller
        self.query_string: bytes = scope["query_string"]


Endpoint = Callable[[Call], Awaitable[Reply | None]]


class Path:
    """A path's name in the metrics and its endpoints by method."""

    __slots__ = ("allow", "endpoints", "name")

    def __init__(self, name: str, **endpoints: Endpoint) -> None:
        if "GET" in endpoints:
            # The server omits the body of a response to HEAD.
            endpoints["HEAD"] = endpoints["GET"]
        self.name = name
        self.endpoints = endpoints
        self.allow = ", ".join([*sorted(endpoints), "OPTIONS"]).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """What every interface of users works with.

    A submission waits for its transfer for as long as the client asks, else for `wait_seconds`. If there is no
    answer `deadline_seconds` after that, the client is told of a time-out; the transfer goes on.
    """

    rules: Rules
    clock: Clock
    telemetry: Telemetry
    wait_seconds: float = WAIT_SECONDS_DEFAULT
    deadline_seconds: float = _DEADLINE_SECONDS

    @classmethod
    def of(cls, settings: Settings, clock: Clock, telemetry: Telemetry) -> Self:
        """Returns the context that the settings give."""
        times = settings.transfers
        return cls(
            rules=settings.rules,
            clock=clock,
            telemetry=telemetry,
            wait_seconds=times.wait_seconds,
            deadline_seconds=times.deadline_seconds,
        )


class SubmissionApi:
    """The submission as an ASGI application, in front of `otherwise` for every other method and path."""

    def __init__(
        self, context: ApiContext, *, submitter: Submitter, authenticator: Authenticator, otherwise: ASGIApp
    ) -> None:
        self._context = context
        self._submitter = submitter
        self._authenticator = authenticator
        self._problems = Problems(context.clock)
        self._render = Renderer(context.rules.assets)
        self._requests = context.telemetry.requests
        self._counters: dict[tuple[str, int, str], Callable[[], None]] = {}
        self._otherwise = otherwise
        self._submission = Path("transfers", POST=self._create)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it to `otherwise`."""
        path = self._path_of(scope) if scope["type"] == "http" else None
        if path is None:
            await self._otherwise(scope, receive, send)
            return
        method = scope["method"]
        reply: Reply | None
        endpoint = path.endpoints.get(method)
        if endpoint is not None:
            reply = await self._answer(endpoint, scope, receive)
        elif method == "OPTIONS":
            reply = Reply(204, [(b"allow", path.allow)], b"")
        else:
            reply = self._problems.request(405, "method", "is not allowed here", (b"allow", path.allow))
        if reply is None:
            return
        status, headers, body, code = reply
        self._count(path.name, status, code)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _path_of(self, scope: Scope) -> Path | None:
        is_submission = scope["path"] == TRANSFERS and scope["method"] == "POST"
        return self._submission if is_submission else None

    def _count(self, name: str, status: int, code: str) -> None:
        count = self._counters.get((name, status, code))
        if count is None:
            count = self._requests.labels(name, outcome_of(status), code).inc
            self._counters[name, status, code] = count
        count()

    async def _answer(self, endpoint: Endpoint, scope: Scope, receive: Receive) -> Reply | None:
        """Returns the endpoint's reply, or a problem if it fails; None if the client has gone."""
        headers = Headers(scope["headers"])
        caller = self._authenticator.authenticate(headers.get(b"authorization"))
        if isinstance(caller, Refusal):
            return self._problems.reply(caller)
        if not caller.may_act_as_user():
            return self._problems.reply(Refusal(Code.PERMISSION_DENIED, "the token has no role that may do this"))
        try:
            return await endpoint(Call(scope, receive, headers, caller))
        except Exception as error:  # noqa: BLE001 - the outermost level of a request; a client must get a problem.
            log_failure(error, scope["path"])
            records = scope["method"] == "POST" and scope["path"] == TRANSFERS
            return self._problems.failure(error, records=records)

    async def _create(self, call: Call) -> Reply | None:
        """Accepts a transfer; the same key and content find it again."""
        body = await self._read(call)
        if not isinstance(body, bytes):
            return body
        headers = call.headers
        key = idempotency_key(headers)
        if isinstance(key, Refusal):
            return self._problems.reply(key, status=400)
        caller = call.caller
        request = decode(body, caller=caller.owner, tier=caller.tier, key=key)
        if isinstance(request, Refusal):
            return self._problems.reply(request, status=400)
        wait = preferred_wait(headers.get(b"prefer"))
        wait_seconds = self._context.wait_seconds if wait is None else wait
        async with asyncio.timeout(self._context.deadline_seconds + wait_seconds):
            answer = await self._submitter.submit(request, wait_seconds=wait_seconds)
        applied: tuple[Header, ...] = () if wait is None else ((b"preference-applied", b"wait=%d" % wait),)
        return self._reply_to_create(answer, applied)

    def _reply_to_create(self, answer: Answer, applied: tuple[Header, ...]) -> Reply:
        transfer, refusal = answer.transfer, answer.refusal
        if transfer is None:
            assert refusal is not None, "an answer is a transfer, a refusal or both"
            return self._problems.reply(refusal)
        location: Header = (b"location", b"%s%d" % (_PREFIX_BYTES, transfer.id))
        if refusal is not None:
            # The key stands for another request: nothing was recorded for this one.
            return self._problems.reply(refusal, request_id=transfer.id, headers=(location, *applied))
        replayed = answer.replayed
        if transfer.status is Status.FAILED:
            assert transfer.failure is not None, "a failed transfer says why"
            return self._problems.reply(
                Refusal(transfer.failure, "The transfer failed, and no money was moved."),
                status=422,
                recorded=True,
                request_id=transfer.id,
                headers=(location, *applied, *((_REPLAYED,) if replayed else ())),
            )
        body = self._render.transfer(transfer, answer.events)
        sent = [JSON_TYPE, (b"content-length", b"%d" % len(body)), location, *applied]
        if replayed:
            sent.append(_REPLAYED)
        if transfer.status is not Status.SUCCESS:
            return Reply(202, sent, body)
        return Reply(200 if replayed else 201, sent, body)

    async def _read(self, call: Call) -> bytes | Reply | None:
        """Returns the body of a POST with proper headers, a reply that refuses it, or None if the client has gone."""
        headers = call.headers
        if call.query_string and isinstance(unknown := parse_pairs(call.query_string, allowed=NO_PARAMETERS), Refusal):
            return self._problems.reply(unknown, status=400)
        if not is_json(headers.get(b"content-type")):
            return self._problems.request(415, "Content-Type", "must be application/json in UTF-8", CLOSE)
        if (encoding := headers.get(b"content-encoding")) is not None and encoding.lower() != b"identity":
            return self._problems.request(415, "Content-Encoding", "must be absent or identity", CLOSE)
        if accepted(headers.get(b"accept"), (JSON,)) is None:
            return self._problems.request(406, "Accept", "must allow application/json", CLOSE)
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared[:20]) > BODY_BYTES_MAX:
            return self._too_large()
        body = await read_body(call.receive)
        return self._too_large() if body is not None and len(body) > BODY_BYTES_MAX else body

    def _too_large(self) -> Reply:
        return self._problems.request(413, "body", f"is larger than {BODY_BYTES_MAX} bytes", CLOSE)
