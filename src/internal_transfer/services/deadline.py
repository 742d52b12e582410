"""Deadlines of port calls: waiting ends, and the failure says whose it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from internal_transfer.ports.errors import OperatingFailureError


@asynccontextmanager
async def deadline(seconds: float, failure: OperatingFailureError) -> AsyncIterator[None]:
    """Raises this failure where the calls inside take longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise failure from error
