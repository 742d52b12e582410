"""The ledger's process: its directory, its health endpoints, its signals."""

import asyncio
from pathlib import Path

from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.api.health import create_health_app
from internal_transfer.hosts.ledger.server import serve_ledger
from internal_transfer.server.http import HttpServer
from internal_transfer.server.sockets import listen_when_free
from internal_transfer.server.supervisor import READY_LINE, reason_of, told_to_stop
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.telemetry import Telemetry


async def run_ledger(data: Path, *, admin_port: int) -> None:
    """Serves the embedded ledger of the data directory to other processes on this host, until SIGTERM or SIGINT.

    This is the role `ledger`, which a process has alone. `admin_port` is for health and metrics, on loopback; 0 picks
    a free one. Raises `StartRefusedError` if it cannot start, and `ServiceFailedError` if it cannot go on.
    """
    directory, clock, telemetry = DataDirectory(data), SystemClock(), Telemetry()
    directory.acquire()
    try:
        health_listener = await listen_when_free("127.0.0.1", admin_port, clock, option="--admin-port")
        stop, ready = told_to_stop(), asyncio.Event()

        async def unready() -> str | None:
            return None if ready.is_set() else "the ledger is starting"

        def announce() -> None:
            ready.set()
            port = health_listener.getsockname()[1]
            print(f"{READY_LINE}{directory.ledger_socket} (health: port {port})", flush=True)  # noqa: T201

        health = create_health_app(readiness=unready, registry=telemetry.registry)
        door = HttpServer(health, health_listener, clock=clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(door.run_until_stopped())
            await serve_ledger(directory, stop, clock=clock, ready=announce)
            door.stop()
    except ExceptionGroup as failed:
        raise reason_of(failed) from None
    finally:
        directory.release()
