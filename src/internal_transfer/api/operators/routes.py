"""The operators' routes, the same behind the socket in the data directory, the public port and the command line.

The application that mounts them decides who may use them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

from internal_transfer.api.operators.request import (
    Acknowledgement,
    CashMove,
    Change,
    Decision,
    NewKey,
    Nothing,
    RequestRefusedError,
    decode_body,
    last_part,
    no_transfer,
    number,
    parameters,
    refused,
    transfer_of,
)
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
from internal_transfer.api.pages import http_problem, response_of
from internal_transfer.api.paths import ADMIN, policy_path, policy_word
from internal_transfer.api.problems import Problems, log_failure
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import read_transfer_id
from internal_transfer.domain.policy_change import ACTIONS, PolicyChange, Subject
from internal_transfer.domain.refusal import Code, Refusal, refuse_field
from internal_transfer.domain.rules import Rules
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.all_ports import Ports
from internal_transfer.services.operators.acknowledgements import ACKNOWLEDGE
from internal_transfer.services.operators.api_keys import ApiKeys
from internal_transfer.services.operators.audit import Act, AuditTrail, check_reason
from internal_transfer.services.operators.cash import Cash, Teller
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.operators.stuck_transfers import Desk, DeskAction
from internal_transfer.services.reconciliation.reconciliation import Reconciliation

PAGE_DEFAULT = 100
PAGE_MAX = 1000

CORE_MODES = {
    "pause": "paused",
    "resume": "normal",
    "refuse": "refuse",
    "refuse-credits": "refuse_credits",
    "withhold": "withhold",
}
"""The words that steer the demonstration core, and the modes that they set."""

NOT_A_DEMONSTRATION = Refusal(Code.PERMISSION_DENIED, "the core can only be steered where the server runs with --demo")
STEERED_ELSEWHERE = Refusal(
    Code.INVALID_STATE_TRANSITION,
    "this service's core runs as a separate process: use admin core with --data and the directory of that core, which "
    "must run with --demo",
)

SetCoreMode = Callable[[str], Awaitable[None]]

ActorOf = Callable[[Request], str | Refusal]
DescribeServer = Callable[[], Awaitable[ServerState]]
Endpoint = Callable[[Request, str], Awaitable[View | Act | Refusal]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorServices:
    """The services behind the operators' interface, with the ports and rules that it reads itself."""

    desk: Desk
    cash: Teller
    reconciliation: Reconciliation
    policies: PolicyEditor
    keys: ApiKeys
    audit: AuditTrail
    ports: Ports
    rules: Rules


class AdminApi:
    """The operators' endpoints.

    `actor_of` returns who the caller is, or a refusal. `set_core_mode` takes one of the values of `CORE_MODES`, or
    is the refusal for anybody who tries to steer the core. `describe_server` is None if no server runs.
    """

    def __init__(
        self,
        services: OperatorServices,
        *,
        actor_of: ActorOf,
        set_core_mode: SetCoreMode | Refusal = NOT_A_DEMONSTRATION,
        describe_server: DescribeServer | None = None,
    ) -> None:
        self._services = services
        self._problems = Problems(services.ports.clock)
        self._views = AdminViews(services.rules)
        self._actor_of = actor_of
        self._set_core_mode = set_core_mode
        self._describe_server = describe_server

    def app(self) -> Starlette:
        """Makes an application of the endpoints."""
        get, post = ["GET"], ["POST"]
        answer = self._answer
        return Starlette(
            routes=[
                Path(f"{ADMIN}/transfers", answer(self._list), methods=get),
                Path(f"{ADMIN}/transfers/stuck", answer(self._stuck), methods=get),
                Path(f"{ADMIN}/transfers/{{id}}", answer(self._show), methods=get),
                Path(f"{ADMIN}/transfers/{{id}}/{{action}}", answer(self._decide), methods=post),
                Path(f"{ADMIN}/deposits", answer(self._move_cash(self._services.cash.deposit)), methods=post),
                Path(f"{ADMIN}/withdrawals", answer(self._move_cash(self._services.cash.withdraw)), methods=post),
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
        """Wraps an endpoint: renders what it returns, and turns its failures into problems."""

        async def answer(request: Request) -> Response:
            actor = self._actor_of(request)
            if isinstance(actor, Refusal):
                return response_of(self._problems.reply(actor))
            try:
                view = await endpoint(request, actor)
            except RequestRefusedError as error:
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

    def _http_problem(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return http_problem(self._problems, error, "method" if error.status_code == 405 else "path", error.detail)

    async def _list(self, request: Request, _: str) -> View | Refusal:
        query = parameters(request, "status", "after", "limit")
        if query.get("status") not in tuple(Status):
            raise refused("status", f"must be one of {', '.join(Status)}")
        after = read_transfer_id(query["after"]) if "after" in query else None
        if after is None and "after" in query:
            raise refused("after", "must be a request_id")
        limit = number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX)
        found = await self._services.desk.by_status(Status(query["status"]), after=after, most=limit)
        more = str(found[-1].id) if len(found) == limit else None
        return {"transfers": [self._views.transfer(transfer) for transfer in found], "next_after": more}

    async def _stuck(self, request: Request, _: str) -> View | Refusal:
        query = parameters(request, "limit")
        found = await self._services.desk.stuck(most=number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX))
        return {"transfers": [self._views.transfer(transfer) for transfer in found]}

    async def _show(self, request: Request, _: str) -> View | Refusal:
        parameters(request)
        evidence = await self._services.desk.show(transfer_of(request))
        return no_transfer() if evidence is None else self._views.evidence(evidence)

    async def _decide(self, request: Request, actor: str) -> Act | Refusal:
        desk = self._services.desk
        action = last_part(request, "action", (*DeskAction, ACKNOWLEDGE))
        if action == ACKNOWLEDGE:
            acknowledgement = await decode_body(request, Acknowledgement)
            return await desk.acknowledge(transfer_of(request), reason=acknowledgement.reason, actor=actor)
        body = await decode_body(request, Decision)
        if body.break_glass and action != DeskAction.POST:
            raise refused("break_glass", "is only for a post")
        transfer_id = transfer_of(request)
        if action == DeskAction.POST:
            return await desk.post(
                transfer_id, reason=body.reason, actor=actor, shown=body.evidence, break_glass=body.break_glass
            )
        decide = desk.retry if action == DeskAction.RETRY else desk.void
        return await decide(transfer_id, reason=body.reason, actor=actor, shown=body.evidence)

    def _move_cash(self, move: Callable[..., Awaitable[Act | Refusal]]) -> Endpoint:
        async def move_cash(request: Request, actor: str) -> View | Refusal:
            body = await decode_body(request, CashMove)
            account = Account(Owner(body.user), body.account, body.asset)
            cash = Cash(account=account, amount=body.amount, reference=body.reference, reason=body.reason)
            act = await move(cash, actor=actor)
            return (
                act if isinstance(act, Refusal) else act_view(act) | msgspec.to_builtins(body) | {"reason": act.reason}
            )

        return move_cash

    async def _reconcile(self, request: Request, _: str) -> View | Refusal:
        await decode_body(request, Nothing)
        return reconciled_view(await self._services.reconciliation.run())

    async def _last_report(self, request: Request, _: str) -> View | Refusal:
        parameters(request)
        report = await self._services.reconciliation.last()
        return {"clean": None, "items": [], "at": None} if report is None else report_view(report)

    async def _policy(self, request: Request, _: str) -> View | Refusal:
        parameters(request)
        return policy_view(await self._services.policies.current())

    def _change_policy(self, kind: Subject) -> Endpoint:
        actions = {policy_word(kind, action): action for action in ACTIONS[kind]}

        async def change(request: Request, actor: str) -> Act | Refusal:
            action = actions[last_part(request, "action", tuple(actions))]
            body = await decode_body(request, Change)
            change = PolicyChange(action, request.path_params.get("subject", Subject.ALL.value))
            return await self._services.policies.change(change, reason=body.reason, actor=actor, version=body.version)

        return change

    async def _audit_entries(self, request: Request, _: str) -> View | Refusal:
        query = parameters(request, "after", "limit")
        limit = number(query, "limit", PAGE_DEFAULT, 1, PAGE_MAX)
        links = await self._services.ports.operations.audit(after=number(query, "after", 0, 0, 2**63 - 1), most=limit)
        await self._services.ports.durability.durable()
        return {"entries": [audit_view(link) for link in links]}

    async def _verify_audit(self, request: Request, _: str) -> View | Refusal:
        parameters(request)
        broken_at = await self._services.ports.operations.verify_audit()
        return {"whole": broken_at is None, "broken_at": broken_at}

    async def _create_key(self, request: Request, actor: str) -> View | Refusal:
        body = await decode_body(request, NewKey)
        new = await self._services.keys.create(body.user, tier=body.tier, actor=actor, reason=body.reason)
        if isinstance(new, Refusal):
            return new
        return {"api_key": new.api_key, "secret": new.secret, "passphrase": new.passphrase}

    async def _revoke_key(self, request: Request, actor: str) -> View | Refusal:
        body = await decode_body(request, Change)
        key = await self._services.keys.revoke(request.path_params["key"], actor=actor, reason=body.reason)
        if key is None:
            return refuse_field("key", "does not exist")
        return key if isinstance(key, Refusal) else {"api_key": key.key, "revoked": True}

    async def _core(self, request: Request, actor: str) -> Act | Refusal:
        word = last_part(request, "mode", tuple(CORE_MODES))
        body = await decode_body(request, Change)
        refusal = check_reason(body.reason)
        if refusal is not None:
            return refusal
        if isinstance(self._set_core_mode, Refusal):
            return self._set_core_mode
        action = f"core_{word}"
        audit, reason = self._services.audit, body.reason
        entry = audit.entry(actor=actor, action=action, subject="core", reason=reason, outcome="completed")
        number = await audit.append(entry)
        await self._services.ports.durability.durable()
        await self._set_core_mode(CORE_MODES[word])
        return Act(action=action, subject="core", outcome="completed", reason=body.reason, audit_id=number)

    async def _server(self, request: Request, _: str) -> View | Refusal:
        parameters(request)
        if self._describe_server is None:
            raise refused("path", "is served only by a running server", 404)
        view: View = msgspec.to_builtins(await self._describe_server())
        return view
