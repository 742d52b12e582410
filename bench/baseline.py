"""An empty POST, the ruler of every report: it shows what HTTP alone costs.

    python bench/baseline.py {ours,h11}

`ours` is the HTTP server of the service; `h11` is uvicorn with its pure Python parser, with which the targets were set
(`docs/decisions/0008-two-rulers.md`).
"""

import asyncio
import signal
import sys

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.server.http import HttpServer, calm_collector, run_on_uvloop
from internal_transfer.server.sockets import listen


async def empty(request: Request) -> Response:
    """Decodes the body and answers one word."""
    msgspec.json.decode(await request.body())
    return Response(b'{"ok":true}', media_type="application/json")


async def main(server_name: str) -> None:
    """Serves on a free port until SIGTERM, with the garbage collector set as in the service."""
    app = Starlette(routes=[Route("/empty", empty, methods=["POST"])])
    listener = listen("127.0.0.1", 0)
    calm_collector()
    print(f"the baseline is ready on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    if server_name == "h11":
        await uvicorn.Server(uvicorn.Config(app, access_log=False, lifespan="off", http="h11")).serve([listener])
    else:
        server = HttpServer(app, listener, clock=SystemClock())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        await server.run_until_stopped()


run_on_uvloop(main(sys.argv[1]))
