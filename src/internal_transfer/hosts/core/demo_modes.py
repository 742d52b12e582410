"""Steers the demonstration core over a socket in its data directory, with the operators' route of the service.

`POST core/MODE` sets the core's mode, `GET core` returns it. What was set is logged and lasts until the core ends.
"""

import os
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.api.operators.request import Change, RequestRefusedError, decode_body, last_part
from internal_transfer.api.operators.routes import CORE_MODES
from internal_transfer.api.pages import create_pages, response_of
from internal_transfer.api.paths import ADMIN
from internal_transfer.api.problems import Problems
from internal_transfer.ports.clock import Clock
from internal_transfer.server.http import HttpServer
from internal_transfer.server.sockets import listen_owner_only
from internal_transfer.services.operators.audit import check_reason

_log = structlog.get_logger(__name__)

_NO_STORE = {"cache-control": "no-store"}


async def serve_modes(core: ReferenceCore, path: Path, clock: Clock) -> None:
    """Serves on a socket at this path, until cancelled; raises `StartRefusedError` naming the path."""
    with listen_owner_only(path) as listener:
        await HttpServer(modes_app(core, clock), listener, clock=clock).run_until_stopped()


def modes_app(core: ReferenceCore, clock: Clock) -> Starlette:
    """Returns the application for anybody who can open the core's socket."""
    problems = Problems(clock)

    async def show(_: Request) -> Response:
        return JSONResponse({"mode": core.mode}, headers=_NO_STORE)

    async def steer(request: Request) -> Response:
        word = last_part(request, "mode", tuple(CORE_MODES))
        reason = (await decode_body(request, Change)).reason
        refusal = check_reason(reason)
        if refusal is not None:
            raise RequestRefusedError(refusal)
        core.mode = CoreMode(CORE_MODES[word])
        _log.warning("core_mode_set", mode=core.mode, reason=reason, user=os.getuid())
        # The core keeps no audit chain, so there is no entry to name.
        named = {"action": f"core_{word}", "request_id": None, "audit_id": None, "subject": "core"}
        return JSONResponse(named | {"outcome": "completed", "reason": reason}, headers=_NO_STORE)

    def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefusedError), "registered for it"
        return response_of(problems.reply(error.refusal, status=error.status))

    get, post = Route(f"{ADMIN}/core", show, methods=["GET"]), Route(f"{ADMIN}/core/{{mode}}", steer, methods=["POST"])
    app = create_pages([get, post], problems)
    app.add_exception_handler(RequestRefusedError, refuse)
    return app
