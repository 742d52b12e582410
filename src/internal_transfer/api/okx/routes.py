"""The facade for clients of OKX's REST interface, above all the unmodified `ccxt` package.

It is another way to the same gateway: a `clientId` is the idempotency key, an account id (6, 18) or name is an account
type, and every refusal has the OKX code that makes ccxt raise the right class. What differs from OKX is refused and
explained, never ignored. See `docs/guides/ccxt.md`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from internal_transfer.api.decode import BODY_BYTES_MAX, read_body
from internal_transfer.api.headers import Headers, is_json
from internal_transfer.api.history import next_cursor
from internal_transfer.api.okx.envelope import Envelopes
from internal_transfer.api.okx.request import account_type, bills_query, decode_transfer, look_up, parameters
from internal_transfer.api.okx.signature import Denied, Signatures, Signer
from internal_transfer.api.problems import CLOSE, Reply, log_failure, outcome_of, refusal_of
from internal_transfer.api.submission import ApiContext
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.transfer import Status
from internal_transfer.services.answer import BalanceLine
from internal_transfer.services.gateway import Gateway
from internal_transfer.services.inquiry import Inquiry

PREFIX = "/api/v5"

_BILL_OF_TRANSFERS = "1"
_FUNDING, _TRADING = "funding", "spot"
_CURRENCIES_PARAMETERS = frozenset({"ccy"})
_STATE_PARAMETERS = frozenset({"transId", "clientId", "type"})
_BILLS_PARAMETERS = frozenset({"type", "ccy", "begin", "end", "limit", "after"})
_BALANCES_PARAMETERS = frozenset({"ccy", "account"})


class _Call(NamedTuple):
    """One signed request on its way to its endpoint."""

    signer: Signer
    query_string: bytes
    body: bytes


class _Path(NamedTuple):
    """A path: its name in the metrics, its one method, and its endpoint, which is either signed or public."""

    name: str
    method: str = "GET"
    signed: Callable[[_Call], Awaitable[Reply]] | None = None
    public: Callable[[], Reply] | None = None


class OkxApi:
    """The facade as one ASGI application for all paths under `PREFIX`.

    OKX's clients cannot ask for a wait: a submission that is not final after the context's `wait_seconds` has the
    state "pending".
    """

    def __init__(self, context: ApiContext, *, gateway: Gateway, inquiry: Inquiry, signatures: Signatures) -> None:
        self._context = context
        self._gateway = gateway
        self._inquiry = inquiry
        self._signatures = signatures
        self._requests = context.telemetry.requests
        self._envelopes = Envelopes(context.rules.assets, context.clock)
        self._paths = {
            f"{PREFIX}/public/time": _Path("okx_time", public=self._time),
            f"{PREFIX}/public/instruments": _Path("okx_instruments", public=self._instruments),
            f"{PREFIX}/asset/currencies": _Path("okx_currencies", signed=self._currencies),
            f"{PREFIX}/asset/transfer": _Path("okx_transfer", method="POST", signed=self._transfer),
            f"{PREFIX}/asset/transfer-state": _Path("okx_transfer_state", signed=self._transfer_state),
            f"{PREFIX}/account/bills-archive": _Path("okx_bills", signed=self._bills),
            f"{PREFIX}/asset/balances": _Path("okx_balances", signed=self._funding_balances),
            f"{PREFIX}/account/balance": _Path("okx_balance", signed=self._trading_balance),
        }

    def routes(self) -> list[BaseRoute]:
        """Returns the routes of the facade, for `create_app(pages=...)`; the contract in `/openapi.json` omits them."""
        return [Route(f"{PREFIX}/{{path:path}}", self, include_in_schema=False)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = self._paths.get(scope["path"])
        if path is None:
            name, reply = "okx_unknown", self._envelopes.wrong(404, "50404", "this service has no such path")
        else:
            name, answered = path.name, await self._answer(path, scope, receive)
            if answered is None:
                return  # The client has gone.
            reply = answered
        status, headers, body, code = reply
        self._requests.labels(name, outcome_of(status), code).inc()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, path: _Path, scope: Scope, receive: Receive) -> Reply | None:
        method = scope["method"]
        if method != path.method:
            return self._envelopes.wrong(
                405, "50115", f"the method must be {path.method}", (b"allow", path.method.encode())
            )
        if path.public is not None:
            return path.public()
        assert path.signed is not None, "a path is either public or signed"
        headers = Headers(scope["headers"])
        body = await self._read(headers, receive) if method == "POST" else b""
        if not isinstance(body, bytes):
            return body
        query_string: bytes = scope["query_string"]
        target: bytes = scope["raw_path"] + (b"?" + query_string if query_string else b"")
        try:
            signer = await self._signatures.verify(method=method, target=target, headers=headers, body=body)
            if isinstance(signer, Denied):
                return self._envelopes.denied(signer.code, signer.message)
            return await path.signed(_Call(signer, query_string, body))
        except Exception as error:  # noqa: BLE001 - the outermost level of a request; a client must get an envelope.
            log_failure(error, scope["path"])
            return self._envelopes.refusal(refusal_of(error))

    async def _read(self, headers: Headers, receive: Receive) -> bytes | Reply | None:
        """Returns the body of a POST, a reply that refuses it, or None if the client has gone."""
        if not is_json(headers.get(b"content-type")):
            return self._envelopes.wrong(415, "50006", "Content-Type must be application/json", CLOSE)
        body = await read_body(receive)
        if body is not None and len(body) > BODY_BYTES_MAX:
            return self._envelopes.wrong(413, "51000", f"the body is larger than {BODY_BYTES_MAX} bytes", CLOSE)
        return body

    def _time(self) -> Reply:
        """Returns the time of the clock that timestamps are checked against."""
        return self._envelopes.data([{"ts": str(self._context.clock.now_ms())}])

    def _instruments(self) -> Reply:
        """Returns no instruments, since nothing is traded here; clients ask while they load their markets."""
        return self._envelopes.data([])

    async def _currencies(self, call: _Call) -> Reply:
        """Returns the assets, from which ccxt learns the precision of amounts."""
        given = parameters(call.query_string, allowed=_CURRENCIES_PARAMETERS)
        if isinstance(given, Refusal):
            return self._envelopes.refusal(given)
        shown = self._envelopes.currencies(self._context.rules, call.signer.tier)
        wanted = _assets_of(given)
        return self._envelopes.data([entry for entry in shown if wanted is None or entry["ccy"] in wanted])

    async def _transfer(self, call: _Call) -> Reply:
        """Accepts a transfer; the same `clientId` and content find it again."""
        if call.query_string:
            return self._envelopes.refusal(refuse_field("query", "must be empty; parameters go into the body"))
        signer = call.signer
        request = decode_transfer(call.body, caller=signer.owner, tier=signer.tier)
        if isinstance(request, Refusal):
            return self._envelopes.refusal(request, status=400)
        wait_seconds = self._context.wait_seconds
        async with asyncio.timeout(self._context.deadline_seconds + wait_seconds):
            answer = await self._gateway.submit(request, wait_seconds=wait_seconds)
        if answer.refusal is not None:
            return self._envelopes.refusal(answer.refusal)
        transfer = answer.transfer
        assert transfer is not None, "an answer is a transfer, a refusal or both"
        if transfer.status is Status.FAILED:
            return self._envelopes.failed(transfer, signer.owner)
        return self._envelopes.data([self._envelopes.transfer(transfer, signer.owner)])

    async def _transfer_state(self, call: _Call) -> Reply:
        """Returns one transfer, by its id or its `clientId`; a failed one is returned like any other."""
        given = parameters(call.query_string, allowed=_STATE_PARAMETERS)
        wanted = given if isinstance(given, Refusal) else look_up(given)
        if isinstance(wanted, Refusal):
            return self._envelopes.refusal(wanted)
        owner = call.signer.owner
        if wanted.transfer_id is not None:
            answer = await self._inquiry.get(owner, wanted.transfer_id)
        else:
            assert wanted.key is not None, "a look-up names one of the two"
            answer = await self._inquiry.by_key(owner, wanted.key)
        transfer = None if answer is None else answer.transfer
        if transfer is None:
            return self._envelopes.refusal(Refusal(Code.TRANSFER_NOT_FOUND, "You have no such transfer."))
        if wanted.key is not None and wanted.key != transfer.key:
            return self._envelopes.refusal(refuse_field("clientId", "belongs to another transfer than transId"))
        return self._envelopes.data([self._envelopes.transfer(transfer, owner)])

    async def _bills(self, call: _Call) -> Reply:
        """Returns a page of transfers, newest accepted first; its last `billId` is the `after` of the next page."""
        given = parameters(call.query_string, allowed=_BILLS_PARAMETERS)
        if isinstance(given, Refusal):
            return self._envelopes.refusal(given)
        owner = call.signer.owner
        query = bills_query(given, owner)
        if isinstance(query, Refusal):
            return self._envelopes.refusal(query)
        if given.get("type", _BILL_OF_TRANSFERS) != _BILL_OF_TRANSFERS:
            return self._envelopes.data([])  # There are no trades, fees and the like here.
        page = await self._inquiry.history(query)
        lines = [self._envelopes.bill(transfer, owner) for transfer in page.transfers]
        cursor = next_cursor(query, page)
        if cursor is not None:
            lines[-1] = self._envelopes.bill(page.transfers[-1], owner, bill_id=cursor)
        return self._envelopes.data(lines)

    async def _funding_balances(self, call: _Call) -> Reply:
        """Returns the balances of the funding account, or of the one that `account` names."""
        lines = await self._lines(call, _FUNDING)
        if isinstance(lines, Refusal):
            return self._envelopes.refusal(lines)
        return self._envelopes.data([self._envelopes.funding_balance(line) for line in lines])

    async def _trading_balance(self, call: _Call) -> Reply:
        """Returns the balances of the trading (spot) account, or of the one that `account` names."""
        lines = await self._lines(call, _TRADING)
        if isinstance(lines, Refusal):
            return self._envelopes.refusal(lines)
        return self._envelopes.data([self._envelopes.trading_account(lines)])

    async def _lines(self, call: _Call, default: str) -> list[BalanceLine] | Refusal:
        given = parameters(call.query_string, allowed=_BALANCES_PARAMETERS)
        if isinstance(given, Refusal):
            return given
        kind = account_type(given.get("account", default))
        if kind not in self._context.rules.account_types:
            return refuse_field("account", "is not an account type offered here", Code.INVALID_ACCOUNT)
        wanted = _assets_of(given)
        lines = [
            line
            for line in await self._inquiry.balances(call.signer.owner)
            if line.account.type == kind and (wanted is None or line.account.asset in wanted)
        ]
        if any(line.unavailable for line in lines):
            return Refusal(Code.CORE_UNAVAILABLE, "The trading core does not answer for its balances.")
        return lines


def _assets_of(given: dict[str, str]) -> frozenset[str] | None:
    """Returns the assets that a comma-separated `ccy` asks for, or None for all."""
    return frozenset(given["ccy"].split(",")) if "ccy" in given else None
