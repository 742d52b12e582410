"""The doors of a server: the applications for users and operators, and where operators reach theirs."""

import os
import socket
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from internal_transfer.api.authentication import Authenticator
from internal_transfer.api.health import create_health_app
from internal_transfer.api.okx.routes import OkxApi
from internal_transfer.api.okx.signature import Signatures
from internal_transfer.api.operators.routes import (
    NOT_A_DEMONSTRATION,
    STEERED_ELSEWHERE,
    AdminApi,
    DescribeServer,
    OperatorServices,
)
from internal_transfer.api.paths import ADMIN
from internal_transfer.api.routes import create_app
from internal_transfer.api.submission import ApiContext
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.server.http import Bounds, HttpServer
from internal_transfer.server.sockets import listen_owner_only
from internal_transfer.settings.issuers import TrustedIssuer
from internal_transfer.settings.settings import Settings
from internal_transfer.wiring.service import Service

OPERATOR = "operator"


def public_app(
    service: Service, settings: Settings, issuers: list[TrustedIssuer], *, demo: bool, state: DescribeServer
) -> ASGIApp:
    """Returns the users' application, with the operators' routes for tokens that have the role `operator`."""
    authenticator = Authenticator(issuers, service.ports.clock)
    context = ApiContext.of(settings, service.ports.clock, service.ports.telemetry)
    gateway, inquiry = service.gateway, service.inquiry
    okx = OkxApi(
        context, gateway=gateway, inquiry=inquiry, signatures=Signatures(service.api_keys, service.ports.clock)
    )
    users = create_app(context, gateway=gateway, inquiry=inquiry, authenticator=authenticator, pages=okx.routes())

    def actor_of(request: Request) -> str | Refusal:
        header = request.headers.get("authorization")
        caller = authenticator.authenticate(None if header is None else header.encode("latin-1"))
        if isinstance(caller, Refusal):
            return caller
        if OPERATOR not in caller.roles:
            return Refusal(Code.PERMISSION_DENIED, "the token does not carry the role operator")
        return caller.owner

    operators = admin_app(service, demo=demo, state=state, actor_of=actor_of)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_operators = scope["path"].startswith(ADMIN)
        await (operators if is_operators else users)(scope, receive, send)

    return app


def admin_app(
    service: Service,
    *,
    demo: bool,
    state: DescribeServer | None,
    actor_of: Callable[[Request], str | Refusal] | None = None,
) -> ASGIApp:
    """Returns the operators' application; without `actor_of`, for a user who can open the socket or the directory.

    `state` describes the server, if one runs.
    """
    local = f"local:{os.getuid()}"
    services = OperatorServices(
        desk=service.desk,
        cash=service.teller,
        reconciliation=service.reconciliation,
        policies=service.policy_editor,
        keys=service.api_keys,
        audit=service.audit,
        ports=service.ports,
        rules=service.settings.rules,
    )
    return AdminApi(
        services,
        actor_of=actor_of or (lambda _: local),
        set_core_mode=(service.stack.set_core_mode or STEERED_ELSEWHERE) if demo else NOT_A_DEMONSTRATION,
        describe_server=state,
    ).app()


def operators_doors(
    service: Service,
    health_listener: socket.socket,
    unready: Callable[[], Awaitable[str | None]],
    state: DescribeServer,
    *,
    demo: bool,
    bounds: Bounds,
) -> list[HttpServer]:
    """Returns the operators' servers: health and metrics on a port, their application on its own socket.

    Raises `StartRefusedError`.
    """
    health = create_health_app(readiness=unready, registry=service.ports.telemetry.registry)
    admin = admin_app(service, demo=demo, state=state)
    own = listen_owner_only(service.directory.admin_socket)
    return [
        HttpServer(app, listener, clock=service.ports.clock, bounds=bounds)
        for app, listener in ((health, health_listener), (admin, own))
    ]
