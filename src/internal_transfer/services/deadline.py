"""How failures of port calls are told: when waiting ends, what may have been done, and to whom it matters."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable


@asynccontextmanager
async def deadline(seconds: float, failure: OperatingFailureError) -> AsyncIterator[None]:
    """Raises this failure where the calls inside take longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise failure from error


@contextmanager
def after_effect() -> Iterator[None]:
    """Raises `OutcomeUnknown` for what is `Unavailable` inside: what was done before may stand."""
    try:
        yield
    except Unavailable as error:
        raise OutcomeUnknown(error.system, error.message) from error


async def leave_failed_turn(durability: Durability) -> None:
    """Takes note of a failure of this task's shared commit, so that its next work is not told of that again."""
    with suppress(OperatingFailureError):
        await durability.durable()
