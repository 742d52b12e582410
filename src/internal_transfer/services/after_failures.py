"""What a failed call means for the effects before it and the work after it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable


@contextmanager
def after_effect() -> Iterator[None]:
    """Turns an `Unavailable` from inside into `OutcomeUnknown`, since the effects before it stand."""
    try:
        yield
    except Unavailable as error:
        raise OutcomeUnknown(error.system, error.message) from error


async def leave_failed_turn(durability: Durability) -> None:
    """Waits out the failed commit of this task's turn, so that its failure is not raised again in the next one."""
    with suppress(OperatingFailureError):
        await durability.durable()
