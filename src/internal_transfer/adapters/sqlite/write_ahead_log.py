"""Keeps the write-ahead log of an embedded database short."""

import asyncio

import structlog

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError

CHECKPOINT_SECONDS = 1.0
LOG_BYTES_MAX = 64 * 1024 * 1024

_log = structlog.get_logger(__name__)


async def keep_log_short(database: Database, clock: Clock) -> None:
    """Moves the log into the database again and again until cancelled; most of the work is done off the event loop."""
    while True:
        await clock.sleep(CHECKPOINT_SECONDS)
        try:
            await asyncio.to_thread(database.checkpoint)
            if database.log_bytes > LOG_BYTES_MAX:
                database.restart_log()
        except OperatingFailureError as error:
            _log.warning("checkpoint_failed", error=str(error))
