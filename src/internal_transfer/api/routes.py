"""The users' HTTP interface: which paths there are, and what each one does with a request.

The endpoints here look at transfers and accounts; `submission` makes transfers. The contract, its documentation and
unknown paths are an ordinary Starlette application behind them.
"""

from collections.abc import Sequence

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Scope

from internal_transfer.api.authentication import Authenticator
from internal_transfer.api.decode import decode
from internal_transfer.api.docs import documentation_routes
from internal_transfer.api.headers import CSV, JSON, accepted, check_key
from internal_transfer.api.history import next_cursor, next_target, parse_history, parse_pairs
from internal_transfer.api.pages import create_pages
from internal_transfer.api.paths import BALANCES, HISTORY, OPTIONS, PREVIEW, TRANSFER_PREFIX, TRANSFERS
from internal_transfer.api.problems import NO_STORE, Header, Problems, Reply, problem_of
from internal_transfer.api.submission import JSON_TYPE, NO_PARAMETERS, ApiContext, Call, Path, SubmissionApi
from internal_transfer.domain.identifier import read_transfer_id
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.services.answer import Answer
from internal_transfer.services.gateway import Gateway
from internal_transfer.services.inquiry import Inquiry

_BY_KEY = frozenset({"idempotency_key"})
_CSV_TYPE: Header = (b"content-type", b"text/csv; charset=utf-8; header=present")
_VARY: Header = (b"vary", b"accept")


class UserApi(SubmissionApi):
    """The endpoints of the users' interface as one ASGI application, in front of `otherwise` for all other paths."""

    def __init__(
        self,
        context: ApiContext,
        *,
        gateway: Gateway,
        inquiry: Inquiry,
        authenticator: Authenticator,
        otherwise: ASGIApp,
    ) -> None:
        super().__init__(context, submitter=gateway, authenticator=authenticator, otherwise=otherwise)
        self._inquiry = inquiry
        self._paths = {
            TRANSFERS: Path("transfers", POST=self._create, GET=self._by_key),
            HISTORY: Path("history", GET=self._history),
            PREVIEW: Path("preview", POST=self._preview),
            OPTIONS: Path("options", GET=self._options),
            BALANCES: Path("balances", GET=self._balances),
        }
        self._by_id_path = Path("transfer", GET=self._by_id)

    def _path_of(self, scope: Scope) -> Path | None:
        path: str = scope["path"]
        found = self._paths.get(path)
        if found is None and path.startswith(TRANSFER_PREFIX) and "/" not in path[len(TRANSFER_PREFIX) :]:
            return self._by_id_path
        return found

    async def _preview(self, call: Call) -> Reply | None:
        """Returns whether a transfer would be accepted now; records nothing."""
        body = await self._read(call)
        if not isinstance(body, bytes):
            return body
        caller = call.caller
        request = decode(body, caller=caller.owner, tier=caller.tier, key="")
        if isinstance(request, Refusal):
            return self._problems.reply(request, status=400)
        preview = await self._inquiry.preview(request)
        problem = None if preview.refusal is None else problem_of(preview.refusal)
        shown = self._render.preview(preview, request.source.asset, problem, now_ms=self._context.clock.now_ms())
        return _ok(shown, JSON_TYPE, NO_STORE)

    async def _by_id(self, call: Call) -> Reply:
        """Returns one of the caller's transfers with its timeline; another user's is not found."""
        if (refused := self._check_get(call)) is not None:
            return refused
        transfer_id = read_transfer_id(call.scope["path"][len(TRANSFER_PREFIX) :])
        return self._found(None if transfer_id is None else await self._inquiry.get(call.caller.owner, transfer_id))

    async def _by_key(self, call: Call) -> Reply:
        """Returns the caller's transfer for an idempotency key."""
        if (refused := self._check_accept(call)) is not None:
            return refused
        pairs = parse_pairs(call.query_string, allowed=_BY_KEY)
        if isinstance(pairs, Refusal):
            return self._problems.reply(pairs, status=400)
        if not pairs:
            return self._problems.request(400, "idempotency_key", "is required")
        key = check_key(pairs[0][1].encode())
        if isinstance(key, Refusal):
            return self._problems.request(400, "idempotency_key", key.details[0].rule)
        return self._found(await self._inquiry.by_key(call.caller.owner, key))

    def _found(self, answer: Answer | None) -> Reply:
        if answer is None or answer.transfer is None:
            return self._problems.reply(Refusal(Code.TRANSFER_NOT_FOUND, "You have no such transfer."))
        return _ok(self._render.transfer(answer.transfer, answer.events), JSON_TYPE, NO_STORE)

    async def _history(self, call: Call) -> Reply:
        """Returns a page of the caller's transfers, newest accepted first."""
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
        return _ok(self._render.page(page.transfers, cursor), JSON_TYPE, *headers)

    async def _balances(self, call: Call) -> Reply:
        """Returns the balance of every account that the caller has ever used."""
        if (refused := self._check_get(call)) is not None:
            return refused
        lines = await self._inquiry.balances(call.caller.owner)
        return _ok(self._render.balances(lines), JSON_TYPE, NO_STORE)

    async def _options(self, call: Call) -> Reply:
        """Returns what is offered, and the caller's limits."""
        if (refused := self._check_get(call)) is not None:
            return refused
        return _ok(self._render.options(self._context.rules, call.caller.tier), JSON_TYPE, NO_STORE)

    def _check_get(self, call: Call) -> Reply | None:
        pairs = parse_pairs(call.query_string, allowed=NO_PARAMETERS)
        if isinstance(pairs, Refusal):
            return self._problems.reply(pairs, status=400)
        return self._check_accept(call)

    def _check_accept(self, call: Call) -> Reply | None:
        if accepted(call.headers.get(b"accept"), (JSON,)) is None:
            return self._problems.request(406, "Accept", "must allow application/json")
        return None


def _ok(body: bytes, *headers: Header) -> Reply:
    return Reply(200, [(b"content-length", b"%d" % len(body)), *headers], body)


def create_app(
    context: ApiContext,
    *,
    gateway: Gateway,
    inquiry: Inquiry,
    authenticator: Authenticator,
    pages: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Makes the application of the public port: the users' endpoints, the contract, its page, and any other `pages`."""
    otherwise = create_pages([*documentation_routes(), *pages], Problems(context.clock))
    return UserApi(context, gateway=gateway, inquiry=inquiry, authenticator=authenticator, otherwise=otherwise)
