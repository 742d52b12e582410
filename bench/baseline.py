"""An empty POST on the same HTTP server: what the framework alone can answer, the ruler of every report."""

import asyncio
import sys

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def empty(request: Request) -> Response:
    msgspec.json.decode(await request.body())
    return Response(b'{"ok":true}', media_type="application/json")


app = Starlette(routes=[Route("/empty", empty, methods=["POST"])])
