"""The users' HTTP interface: which paths there are, and what each one does with a request.

The order of a request's checks: path, method, credentials, query syntax, media types, size, idempotency key, body, and
then the service. Credentials come before the body, so that a stranger makes no work.

These endpoints speak ASGI themselves, because a framework around the POST is the largest single cost of a transfer
(see the design, section 12). Everything else - the contract, its documentation, unknown paths - is an ordinary
Starlette application behind them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from internal_transfer.api.authentication import Authenticator, Caller
from internal_transfer.api.decode import BODY_BYTES_MAX, decode
from internal_transfer.api.docs import documentation_routes
from internal_transfer.api.headers import (
    CSV,
    JSON,
    WAIT_SECONDS_DEFAULT,
    Headers,
    accepted,
    check_key,
    idempotency_key,
    is_json,
    preferred_wait,
)
from internal_transfer.api.history import next_cursor, next_target, parse_history, parse_pairs
from internal_transfer.api.pages import create_pages
from internal_transfer.api.paths import BALANCES, HISTORY, OPTIONS, PREVIEW, TRANSFER_PREFIX, TRANSFERS
from internal_transfer.api.problems import CLOSE, NO_STORE, Header, Problems, Reply, outcome_of, problem_of
from internal_transfer.api.render import Renderer
from internal_transfer.domain.identifier import read_transfer_id
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import Gateway
from internal_transfer.services.inquiry import Inquiry
from internal_transfer.telemetry import Telemetry

_DEADLINE_SECONDS = 20.0
_NO_PARAMETERS: frozenset[str] = frozenset()
_BY_KEY = frozenset({"idempotency_key"})

_JSON_TYPE: Header = (b"content-type", JSON)
_CSV_TYPE: Header = (b"content-type", b"text/csv; charset=utf-8; header=present")
_REPLAYED: Header = (b"idempotent-replayed", b"true")
_VARY: Header = (b"vary", b"accept")

_log = structlog.get_logger(__name__)


class _Call:
    """One request on its way to its endpoint."""

    __slots__ = ("caller", "headers", "query_string", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, headers: Headers, caller: Caller) -> None:
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.caller = caller
        self.query_string: bytes = scope["query_string"]


_Endpoint = Callable[[_Call], Awaitable[Reply | None]]


class _Path:
    """A path's name in the metrics and its endpoints by method."""

    __slots__ = ("allow", "endpoints", "name")

    def __init__(self, name: str, **endpoints: _Endpoint) -> None:
        if "GET" in endpoints:
            # The server leaves the body of an answer to HEAD out.
            endpoints["HEAD"] = endpoints["GET"]
        self.name = name
        self.endpoints = endpoints
        self.allow = ", ".join([*sorted(endpoints), "OPTIONS"]).encode()


class UserApi:
    """The endpoints of the users' interface as one ASGI application, in front of `otherwise` for all other paths.

    A submission waits for its transfer as long as the client asks for, else `wait_seconds`. It is bounded by that and
    `deadline_seconds` together, and then answers 503 TIMEOUT.
    The deadline ends the waiting, not the transfer.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        gateway: Gateway,
        inquiry: Inquiry,
        authenticator: Authenticator,
        clock: Clock,
        telemetry: Telemetry,
        otherwise: ASGIApp,
        wait_seconds: float = WAIT_SECONDS_DEFAULT,
        deadline_seconds: float = _DEADLINE_SECONDS,
    ) -> None:
        self._gateway = gateway
        self._inquiry = inquiry
        self._authenticator = authenticator
        self._clock = clock
        self._problems = Problems(clock)
        self._render = Renderer(rules.assets)
        self._requests = telemetry.requests
        self._counters: dict[tuple[str, int, str], Callable[[], None]] = {}
        self._otherwise = otherwise
        self._wait_seconds = wait_seconds
        self._deadline_seconds = deadline_seconds
        self._paths = {
            TRANSFERS: _Path("transfers", POST=self._create, GET=self._by_key),
            HISTORY: _Path("history", GET=self._history),
            PREVIEW: _Path("preview", POST=self._preview),
            OPTIONS: _Path("options", GET=self._options),
            BALANCES: _Path("balances", GET=self._balances),
        }
        self._by_id_path = _Path("transfer", GET=self._by_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands it on."""
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

    def _path_of(self, scope: Scope) -> _Path | None:
        path: str = scope["path"]
        found = self._paths.get(path)
        if found is None and path.startswith(TRANSFER_PREFIX) and "/" not in path[len(TRANSFER_PREFIX) :]:
            return self._by_id_path
        return found

    def _count(self, name: str, status: int, code: str) -> None:
        count = self._counters.get((name, status, code))
        if count is None:
            count = self._requests.labels(name, outcome_of(status), code).inc
            self._counters[name, status, code] = count
        count()

    async def _answer(self, endpoint: _Endpoint, scope: Scope, receive: Receive) -> Reply | None:
        """The endpoint's reply, or the problem that its failure makes; None when the client has gone."""
        headers = Headers(scope["headers"])
        caller = self._authenticator.authenticate(headers.get(b"authorization"))
        if isinstance(caller, Refusal):
            return self._problems.reply(caller)
        if not caller.may_act_as_user():
            return self._problems.reply(Refusal(Code.PERMISSION_DENIED, "the token has no role that may do this"))
        try:
            return await endpoint(_Call(scope, receive, headers, caller))
        except OperatingFailureError as error:
            _log.warning("operating_failure", system=error.system, error=str(error), path=scope["path"])
            return self._problems.failure(error, records=_records(scope))
        except TimeoutError:
            return self._problems.timeout(records=_records(scope))
        except Exception:  # noqa: BLE001 - the outermost loop of a request; a client must get a problem, not a hang-up.
            _log.exception("request_failed", path=scope["path"])
            return self._problems.internal(records=_records(scope))

    async def _create(self, call: _Call) -> Reply | None:
        """Takes a transfer; the same key and content again finds it."""
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
        wait_seconds = self._wait_seconds if wait is None else wait
        async with asyncio.timeout(self._deadline_seconds + wait_seconds):
            answer = await self._gateway.submit(request, wait_seconds=wait_seconds)
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
        sent = [_JSON_TYPE, (b"content-length", b"%d" % len(body)), location, *applied]
        if replayed:
            sent.append(_REPLAYED)
        if transfer.status is not Status.SUCCESS:
            return Reply(202, sent, body)
        return Reply(200 if replayed else 201, sent, body)

    async def _read(self, call: _Call) -> bytes | Reply | None:
        """The body of a POST whose headers are in order; a reply that refuses it, or None when the client has gone."""
        headers = call.headers
        if call.query_string and isinstance(unknown := parse_pairs(call.query_string, allowed=_NO_PARAMETERS), Refusal):
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
        message = await call.receive()
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            parts, size = [body], len(body)
            while message.get("more_body", False):
                if size > BODY_BYTES_MAX:
                    return self._too_large()
                message = await call.receive()
                if message["type"] != "http.request":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
            body = b"".join(parts)
        return self._too_large() if len(body) > BODY_BYTES_MAX else body

    def _too_large(self) -> Reply:
        return self._problems.request(413, "body", f"is larger than {BODY_BYTES_MAX} bytes", CLOSE)

    async def _preview(self, call: _Call) -> Reply | None:
        """Says whether a transfer would be accepted now; records nothing."""
        body = await self._read(call)
        if not isinstance(body, bytes):
            return body
        caller = call.caller
        request = decode(body, caller=caller.owner, tier=caller.tier, key="")
        if isinstance(request, Refusal):
            return self._problems.reply(request, status=400)
        preview = await self._inquiry.preview(request)
        problem = None if preview.refusal is None else problem_of(preview.refusal)
        shown = self._render.preview(preview, request.source.asset, problem, now_ms=self._clock.now_ms())
        return _ok(shown, _JSON_TYPE, NO_STORE)

    async def _by_id(self, call: _Call) -> Reply:
        """One transfer of the caller's with its timeline; anybody else's is as good as none."""
        if (refused := self._check_get(call, (JSON,))) is not None:
            return refused
        transfer_id = read_transfer_id(call.scope["path"][len(TRANSFER_PREFIX) :])
        answer = None
        if transfer_id is not None:
            answer = await self._inquiry.get(call.caller.owner, transfer_id)
        return self._found(answer)

    async def _by_key(self, call: _Call) -> Reply:
        """The caller's transfer of an idempotency key."""
        if (refused := self._check_accept(call, (JSON,))) is not None:
            return refused
        pairs = parse_pairs(call.query_string, allowed=_BY_KEY)
        if isinstance(pairs, Refusal):
            return self._problems.reply(pairs, status=400)
        if not pairs:
            return self._problems.request(400, "idempotency_key", "is required")
        try:
            key = check_key(pairs[0][1].encode("ascii"))
        except UnicodeEncodeError:
            return self._problems.request(400, "idempotency_key", "may only have printable ASCII characters")
        if isinstance(key, Refusal):
            return self._problems.request(400, "idempotency_key", key.details[0].rule)
        answer = await self._inquiry.by_key(call.caller.owner, key)
        return self._found(answer)

    def _found(self, answer: Answer | None) -> Reply:
        if answer is None or answer.transfer is None:
            return self._problems.reply(Refusal(Code.TRANSFER_NOT_FOUND, "You have no such transfer."))
        return _ok(self._render.transfer(answer.transfer, answer.events), _JSON_TYPE, NO_STORE)

    async def _history(self, call: _Call) -> Reply:
        """A page of the caller's transfers, newest accepted first."""
        query = parse_history(call.query_string, call.caller.owner)
        if isinstance(query, Refusal):
            return self._problems.reply(query, status=400)
        media_type = accepted(call.headers.get(b"accept"), (JSON, CSV))
        if media_type is None:
            return self._problems.request(406, "Accept", "must allow application/json or text/csv")
        page = await self._inquiry.history(query)
        cursor = next_cursor(query, page)
        headers = [NO_STORE, _VARY]
        if cursor is not None:
            target = next_target(HISTORY, call.query_string, cursor)
            headers.append((b"link", f'<{target}>; rel="next"'.encode("ascii")))
        if media_type == CSV:
            return _ok(self._render.page_csv(page.transfers), _CSV_TYPE, *headers)
        return _ok(self._render.page(page.transfers, cursor), _JSON_TYPE, *headers)

    async def _balances(self, call: _Call) -> Reply:
        """What the caller has, in every account ever used."""
        if (refused := self._check_get(call, (JSON,))) is not None:
            return refused
        lines = await self._inquiry.balances(call.caller.owner)
        return _ok(self._render.balances(lines), _JSON_TYPE, NO_STORE)

    async def _options(self, call: _Call) -> Reply:
        """What is offered, and the caller's limits."""
        if (refused := self._check_get(call, (JSON,))) is not None:
            return refused
        return _ok(self._render.options(self._gateway.rules, call.caller.tier), _JSON_TYPE, NO_STORE)

    def _check_get(self, call: _Call, offered: tuple[bytes, ...]) -> Reply | None:
        pairs = parse_pairs(call.query_string, allowed=_NO_PARAMETERS)
        if isinstance(pairs, Refusal):
            return self._problems.reply(pairs, status=400)
        return self._check_accept(call, offered)

    def _check_accept(self, call: _Call, offered: tuple[bytes, ...]) -> Reply | None:
        if accepted(call.headers.get(b"accept"), offered) is None:
            return self._problems.request(406, "Accept", "must allow application/json")
        return None


_PREFIX_BYTES = TRANSFER_PREFIX.encode()


def _records(scope: Scope) -> bool:
    """Tells whether this request may have recorded a transfer."""
    return bool(scope["method"] == "POST" and scope["path"] == TRANSFERS)


def _ok(body: bytes, *headers: Header) -> Reply:
    return Reply(200, [(b"content-length", b"%d" % len(body)), *headers], body)


def create_app(
    *,
    rules: Rules,
    gateway: Gateway,
    inquiry: Inquiry,
    authenticator: Authenticator,
    clock: Clock,
    telemetry: Telemetry,
    pages: Sequence[BaseRoute] = (),
    wait_seconds: float = WAIT_SECONDS_DEFAULT,
    deadline_seconds: float = _DEADLINE_SECONDS,
) -> ASGIApp:
    """The whole application of the public port: the users' endpoints, the contract, its page, and any other `pages`.

    `rules` fixes the assets' scales; what is offered at the moment is asked of the gateway.
    """
    return UserApi(
        rules=rules,
        gateway=gateway,
        inquiry=inquiry,
        authenticator=authenticator,
        clock=clock,
        telemetry=telemetry,
        otherwise=create_pages([*documentation_routes(), *pages], Problems(clock)),
        wait_seconds=wait_seconds,
        deadline_seconds=deadline_seconds,
    )
