"""The operators' HTTP interface, the same behind the socket in the data directory, the public port and the CLI.

Who may use it is decided by whoever mounts it: `actor_of` names the caller for the audit chain, or refuses.
"""

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

from internal_transfer.api.decode import RepeatedKeyError, object_of_pairs
from internal_transfer.api.operators.views import (
    AdminViews,
    ServerState,
    View,
    act_view,
    audit_view,
    policy_view,
    reconciled_view,
    report_view,
)
from internal_transfer.api.pages import response_of
from internal_transfer.api.paths import ADMIN, policy_path, policy_word
from internal_transfer.api.problems import Problems, log_failure
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId, read_transfer_id
from internal_transfer.domain.policy_change import ACTIONS, ALL, PolicyChange, Subject
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.operations import Operations
from internal_transfer.services.operators.acknowledgements import ACKNOWLEDGE
from internal_transfer.services.operators.audit import Act, AuditTrail, check_reason
from internal_transfer.services.operators.cash import Cash, Teller
from internal_transfer.services.operators.desk import Desk, DeskAction
from internal_transfer.services.operators.keys import ApiKeys
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.reconciliation.reconciliation import Reconciliation

BODY_BYTES_MAX = 16 * 1024
PAGE_DEFAULT = 100
PAGE_MAX = 1000
NO_REASON = "not given"
"""The reason on record where an interface does not ask for one."""

CORE_MODES = {
    "pause": "paused",
    "resume": "normal",
    "refuse": "refuse",
    "refuse-credits": "refuse_credits",
    "withhold": "withhold",
}
"""What the demonstration core can be told, and the mode that it then has."""

ActorOf = Callable[[Request], str | Refusal]
DescribeServer = Callable[[], Awaitable[ServerState]]
Endpoint = Callable[[Request, str], Awaitable[View | Act | Refusal]]

T = TypeVar("T", bound=Struct)


class _Decision(Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    evidence: str | None = None
    break_glass: bool = False


class _Acknowledgement(Struct, frozen=True, forbid_unknown_fields=True):
    reason: str


class _Cash(Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    account: str
    asset: str
    amount: str
    reference: str
    reason: str


class _Change(Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = NO_REASON
    version: int | None = None


class _NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    tier: str = "standard"
    reason: str = NO_REASON


class _InputError(Exception):
    """The request is malformed; carries the refusal that names the field."""

    def __init__(self, field: str, rule: str, status: int = 400) -> None:
        super().__init__(f"{field}: {rule}")
        self.refusal = refuse_field(field, rule)
        self.status = status


class AdminApi:
    """The endpoints."""

    def __init__(
        self,
        *,
        desk: Desk,
        cash: Teller,
        reconciliation: Reconciliation,
        policies: PolicyEditor,
        keys: ApiKeys,
        operations: Operations,
        audit: AuditTrail,
        durability: Durability,
        clock: Clock,
        rules: Rules,
        actor_of: ActorOf,
        set_core_mode: Callable[[str], Awaitable[None]] | None,
        describe_server: DescribeServer | None,
    ) -> None:
        self._desk = desk
        self._cash = cash
        self._reconciliation = reconciliation
        self._policies = policies
        self._keys = keys
        self._operations = operations
        self._audit = audit
        self._durability = durability
        self._problems = Problems(clock)
        self._views = AdminViews(rules)
        self._actor_of = actor_of
        self._set_core_mode = set_core_mode
        self._describe_server = describe_server

    def app(self) -> Starlette:
        """The endpoints as an application."""
        get, post = ["GET"], ["POST"]
        answer = self._answer
        return Starlette(
            routes=[
                Path(f"{ADMIN}/transfers", answer(self._list), methods=get),
                Path(f"{ADMIN}/transfers/stuck", answer(self._stuck), methods=get),
                Path(f"{ADMIN}/transfers/{{id}}", answer(self._show), methods=get),
                Path(f"{ADMIN}/transfers/{{id}}/{{action}}", answer(self._decide), methods=post),
                Path(f"{ADMIN}/deposits", answer(self._deposit), methods=post),
                Path(f"{ADMIN}/withdrawals", answer(self._withdraw), methods=post),
                Path(f"{ADMIN}/reconciliation", answer(self._reconcile), methods=post),
                Path(f"{ADMIN}/reconciliation", answer(self._last_report), methods=get),
                Path(f"{ADMIN}/policy", answer(self._policy), methods=get),
                *(
                    Path(
                        ADMIN + policy_path(kind, "{subject}", "{action}"),
                        answer(self._change_policy(kind)),
                        methods=post,
                    )
                    for kind in Subject
                ),
                Path(f"{ADMIN}/audit", answer(self._audit_entries), methods=get),
                Path(f"{ADMIN}/audit/verification", answer(self._verify_audit), methods=get),
                Path(f"{ADMIN}/api-keys", answer(self._create_key), methods=post),
                Path(f"{ADMIN}/api-keys/{{key}}/revoke", answer(self._revoke_key), methods=post),
                Path(f"{ADMIN}/core/{{mode}}", answer(self._core), methods=post),
                Path(f"{ADMIN}/server", answer(self._server), methods=get),
            ],
            exception_handlers={HTTPException: self._http_problem},
        )

    def _answer(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint with its answer rendered, and with the problems that its failures make."""

        async def answer(request: Request) -> Response:
            actor = self._actor_of(request)
            if isinstance(actor, Refusal):
                return response_of(self._problems.reply(actor))
            try:
                view = await endpoint(request, actor)
            except _InputError as error:
                return response_of(self._problems.reply(error.refusal, status=error.status))
            except Exception as error:  # noqa: BLE001 - the outermost level of a request; it must get a problem.
                log_failure(error, request.url.path)
                return response_of(self._problems.failure(error, records=request.method == "POST"))
            if isinstance(view, Refusal):
                return response_of(self._problems.reply(view))
            if isinstance(view, Act):
                view = act_view(view)
            headers = {"cache-control": "no-store"}
            return Response(msgspec.json.encode(view), media_type="application/json", headers=headers)

        return answer

    async def _http_problem(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        field = "method" if error.status_code == 405 else "path"
        headers = tuple((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items())
        return response_of(self._problems.request(error.status_code, field, error.detail, *headers))

    async def _list(self, request: Request, _: str) -> View | Refusal:
        query = _query(request, {"status", "after", "limit"})
        if query.get("status") not in tuple(Status):
            raise _InputError("status", f"must be one of {', '.join(Status)}")
        after = _id(query["after"], "after") if "after" in query else None
        limit = _number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX)
        found = await self._desk.by_status(Status(query["status"]), after=after, most=limit)
        more = str(found[-1].id) if len(found) == limit else None
        return {"transfers": [self._views.transfer(transfer) for transfer in found], "next_after": more}

    async def _stuck(self, request: Request, _: str) -> View | Refusal:
        query = _query(request, {"limit"})
        found = await self._desk.stuck(most=_number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX))
        return {"transfers": [self._views.transfer(transfer) for transfer in found]}

    async def _show(self, request: Request, _: str) -> View | Refusal:
        _query(request, set())
        transfer_id = read_transfer_id(request.path_params["id"])
        evidence = None if transfer_id is None else await self._desk.show(transfer_id)
        return _no_transfer() if evidence is None else self._views.evidence(evidence)

    async def _decide(self, request: Request, actor: str) -> Act | Refusal:
        action = _one_of(request.path_params["action"], (*DeskAction, ACKNOWLEDGE))
        if action == ACKNOWLEDGE:
            return await self._acknowledge(request, actor)
        body = await _body(request, _Decision)
        if body.break_glass and action != DeskAction.POST:
            raise _InputError("break_glass", "is only for a post")
        transfer_id = read_transfer_id(request.path_params["id"])
        if transfer_id is None:
            return _no_transfer()
        if action == DeskAction.POST:
            return await self._desk.post(
                transfer_id, reason=body.reason, actor=actor, shown=body.evidence, break_glass=body.break_glass
            )
        decide = self._desk.retry if action == DeskAction.RETRY else self._desk.void
        return await decide(transfer_id, reason=body.reason, actor=actor, shown=body.evidence)

    async def _acknowledge(self, request: Request, actor: str) -> Act | Refusal:
        body = await _body(request, _Acknowledgement)
        transfer_id = read_transfer_id(request.path_params["id"])
        if transfer_id is None:
            return _no_transfer()
        return await self._desk.acknowledge(transfer_id, reason=body.reason, actor=actor)

    async def _deposit(self, request: Request, actor: str) -> View | Refusal:
        return await self._move_cash(self._cash.deposit, request, actor)

    async def _withdraw(self, request: Request, actor: str) -> View | Refusal:
        return await self._move_cash(self._cash.withdraw, request, actor)

    async def _move_cash(
        self, move: Callable[..., Awaitable[Act | Refusal]], request: Request, actor: str
    ) -> View | Refusal:
        body = await _body(request, _Cash)
        account = Account(Owner(body.user), body.account, body.asset)
        cash = Cash(account=account, amount=body.amount, reference=body.reference, reason=body.reason)
        act = await move(cash, actor=actor)
        if isinstance(act, Refusal):
            return act
        return act_view(act) | {
            "user": body.user,
            "account": body.account,
            "asset": body.asset,
            "amount": body.amount,
            "reference": body.reference,
        }

    async def _reconcile(self, request: Request, _: str) -> View | Refusal:
        await _body(request, _Nothing)
        return reconciled_view(await self._reconciliation.run())

    async def _last_report(self, request: Request, _: str) -> View | Refusal:
        _query(request, set())
        report = await self._reconciliation.last()
        return {"clean": None, "items": [], "at": None} if report is None else report_view(report)

    async def _policy(self, request: Request, _: str) -> View | Refusal:
        _query(request, set())
        return policy_view(await self._policies.current())

    def _change_policy(self, kind: Subject) -> Endpoint:
        actions = {policy_word(kind, action): action for action in ACTIONS[kind]}

        async def change(request: Request, actor: str) -> Act | Refusal:
            action = actions[_one_of(request.path_params["action"], tuple(actions))]
            body = await _body(request, _Change)
            change = PolicyChange(action, request.path_params.get("subject", ALL))
            return await self._policies.change(change, reason=body.reason, actor=actor, version=body.version)

        return change

    async def _audit_entries(self, request: Request, _: str) -> View | Refusal:
        query = _query(request, {"after", "limit"})
        limit = _number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX)
        links = await self._operations.audit(after=_number(query, "after", 0, 0, 2**63 - 1), most=limit)
        await self._durability.durable()
        return {"entries": [audit_view(link) for link in links]}

    async def _verify_audit(self, request: Request, _: str) -> View | Refusal:
        _query(request, set())
        broken_at = await self._operations.verify_audit()
        return {"whole": broken_at is None, "broken_at": broken_at}

    async def _create_key(self, request: Request, actor: str) -> View | Refusal:
        body = await _body(request, _NewKey)
        new = await self._keys.create(body.user, tier=body.tier, actor=actor, reason=body.reason)
        if isinstance(new, Refusal):
            return new
        return {"api_key": new.api_key, "secret": new.secret, "passphrase": new.passphrase}

    async def _revoke_key(self, request: Request, actor: str) -> View | Refusal:
        body = await _body(request, _Change)
        key = await self._keys.revoke(request.path_params["key"], actor=actor, reason=body.reason)
        if key is None:
            return refuse_field("key", "is none that exists")
        return key if isinstance(key, Refusal) else {"api_key": key.key, "revoked": True}

    async def _core(self, request: Request, actor: str) -> Act | Refusal:
        word = _one_of(request.path_params["mode"], tuple(CORE_MODES))
        body = await _body(request, _Change)
        refusal = check_reason(body.reason)
        if refusal is not None:
            return refusal
        if self._set_core_mode is None:
            return Refusal(Code.PERMISSION_DENIED, "the core can only be steered where the server runs with --demo")
        action = f"core_{word}"
        entry = self._audit.entry(actor=actor, action=action, subject="core", reason=body.reason, outcome="completed")
        number = await self._audit.append(entry)
        await self._durability.durable()
        await self._set_core_mode(CORE_MODES[word])
        return Act(action=action, subject="core", outcome="completed", reason=body.reason, audit_id=number)

    async def _server(self, request: Request, _: str) -> View | Refusal:
        _query(request, set())
        if self._describe_server is None:
            raise _InputError("path", "is answered by a running server only", 404)
        view: View = msgspec.to_builtins(await self._describe_server())
        return view


class _Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """A body that says nothing."""


def create_admin_app(
    *,
    desk: Desk,
    cash: Teller,
    reconciliation: Reconciliation,
    policies: PolicyEditor,
    keys: ApiKeys,
    operations: Operations,
    audit: AuditTrail,
    durability: Durability,
    clock: Clock,
    rules: Rules,
    actor_of: ActorOf,
    set_core_mode: Callable[[str], Awaitable[None]] | None = None,
    describe_server: DescribeServer | None = None,
) -> Starlette:
    """The operators' routes as an application.

    `actor_of` answers who the caller is, or a refusal. `set_core_mode` takes one of the values of `CORE_MODES`, and is
    given only in demonstrations; `describe_server` only where a server runs.
    """
    return AdminApi(
        desk=desk,
        cash=cash,
        reconciliation=reconciliation,
        policies=policies,
        keys=keys,
        operations=operations,
        audit=audit,
        durability=durability,
        clock=clock,
        rules=rules,
        actor_of=actor_of,
        set_core_mode=set_core_mode,
        describe_server=describe_server,
    ).app()


async def _body(request: Request, kind: type[T]) -> T:
    """The body, strictly: no repeated or unknown fields; none at all is an empty object."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise _InputError("body", f"is larger than {BODY_BYTES_MAX} bytes", 413)
        parts.append(part)
    try:
        document = json.loads(b"".join(parts) or b"{}", object_pairs_hook=object_of_pairs)
        return msgspec.convert(document, kind)
    except RepeatedKeyError as error:
        raise _InputError(str(error), "is given more than once") from error
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        raise _InputError(where.rstrip("`") or "body", message) from error
    except (ValueError, RecursionError) as error:
        raise _InputError("body", "is not valid JSON") from error


def _query(request: Request, allowed: set[str]) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            raise _InputError(name, "is not a parameter here")
        if name in query:
            raise _InputError(name, "is given more than once")
        query[name] = value
    return query


def _number(query: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not least <= int(text) <= most:
        raise _InputError(name, f"must be a whole number from {least} to {most}")
    return int(text)


def _id(text: str, field: str) -> TransferId:
    transfer_id = read_transfer_id(text)
    if transfer_id is None:
        raise _InputError(field, "must be a request_id")
    return transfer_id


def _one_of(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise _InputError("path", f"must end in one of {', '.join(allowed)}", 404)
    return text


def _no_transfer() -> Refusal:
    return Refusal(Code.TRANSFER_NOT_FOUND, "there is no transfer with this id")
