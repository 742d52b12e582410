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
    """Takes in the failure of this task's shared commit, so that it is not raised again in the task's next work."""
    with suppress(OperatingFailureError):
        await durability.durable()
