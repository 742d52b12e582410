"""Runs the embedded ledger of a data directory for other processes on the same machine."""

import asyncio
from collections.abc import Callable

import structlog

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.ledger import SqliteLedger
from internal_transfer.adapters.sqlite.write_ahead_log import keep_log_short
from internal_transfer.hosts.ledger.dispatcher import Dispatcher
from internal_transfer.ports.clock import Clock
from internal_transfer.server.sockets import listen_owner_only
from internal_transfer.settings.data_directory import DataDirectory

LAST_ANSWERS_SECONDS = 5.0
"""How long clients may take to read their last answers when the host stops."""

_log = structlog.get_logger(__name__)


async def serve_ledger(
    directory: DataDirectory,
    stop: asyncio.Event,
    *,
    clock: Clock,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves the ledger on `directory.ledger_socket` until `stop` is set, then answers the requests it took and ends.

    The caller has acquired the directory, so there is one host at a time. `ready` is called when clients can connect.
    Raises `StartRefusedError`.
    """
    database = Database(directory.database, on_failure=lambda error: _log.error("database_failed", error=str(error)))
    try:
        dispatcher = Dispatcher(SqliteLedger(database, clock), database)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(dispatcher.protocol, sock=listen_owner_only(directory.ledger_socket))
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(dispatcher.run())
            checkpoints = tasks.create_task(keep_log_short(database, clock))
            ready()
            await stop.wait()
            server.close()
            dispatcher.close()
            await work
            checkpoints.cancel()
        await _say_goodbye(dispatcher)
    finally:
        directory.ledger_socket.unlink(missing_ok=True)
        database.close()


async def _say_goodbye(dispatcher: Dispatcher) -> None:
    """Closes the connections when the last answers have gone out, or after `LAST_ANSWERS_SECONDS`."""
    clients = list(dispatcher.clients)
    for client in clients:
        client.frames.close()
    try:
        async with asyncio.timeout(LAST_ANSWERS_SECONDS):
            for client in clients:
                await client.frames.lost
    except TimeoutError:
        for client in clients:
            client.frames.abort()
        _log.warning("ledger_answers_not_read", clients=len(dispatcher.clients))
