"""An empty POST on the same HTTP server: what the framework alone can answer, and the ruler of every report."""

import asyncio
import gc
import signal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from internal_transfer.adapters.clock.system import SystemClock
from internal_transfer.api.server import HttpServer, listen, run_on_uvloop


async def empty(request: Request) -> Response:
    """Decodes the body and answers a word."""
    msgspec.json.decode(await request.body())
    return Response(b'{"ok":true}', media_type="application/json")


async def main() -> None:
    """Serves on a free port until SIGTERM, with the collector set as in the service."""
    app = Starlette(routes=[Route("/empty", empty, methods=["POST"])])
    server = HttpServer(app, listen("127.0.0.1", 0), clock=SystemClock())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    print(f"the baseline is ready on http://127.0.0.1:{server.port}", flush=True)
    await server.run_until_stopped()


run_on_uvloop(main())
