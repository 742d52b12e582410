"""The admin port: whether the process is alive, whether it is ready or why not, and its metrics."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Readiness = Callable[[], Awaitable[str | None]]
"""Returns why the service should get no requests now, or None if it should."""

_NO_STORE = {"cache-control": "no-store"}


def create_health_app(*, readiness: Readiness, registry: CollectorRegistry) -> Starlette:
    """Makes the admin port's application.

    `/healthz`: 200 while the process can answer at all. `/readyz`: 200, or 503 with the reason. `/metrics`:
    OpenMetrics, or the older text format for a scraper that asks only for that.
    """

    async def healthz(_: Request) -> Response:
        return _json(200, {"alive": True})

    async def readyz(_: Request) -> Response:
        reason = await readiness()
        return _json(200 if reason is None else 503, {"ready": reason is None, "reason": reason})

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        encode: Any
        encode, content_type = choose_encoder(accept)
        if not accept or "*/*" in accept:
            encode, content_type = generate_openmetrics, OPENMETRICS
        return Response(encode(registry), headers={"content-type": content_type})

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])


def _json(status: int, content: dict[str, object]) -> Response:
    return Response(msgspec.json.encode(content), status, _NO_STORE, "application/json")
