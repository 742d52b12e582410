"""What a failed call means for what was done before it, and for the work after it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from internal_transfer.ports.durability import Durability
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, Unavailable


@contextmanager
def after_effect() -> Iterator[None]:
    """Turns an `Unavailable` from inside into `OutcomeUnknown`: what was done before it stands."""
    try:
        yield
    except Unavailable as error:
        raise OutcomeUnknown(error.system, error.message) from error


async def leave_failed_turn(durability: Durability) -> None:
    """Collects the failure of this task's shared commit, so that the task's next work is not told of it again."""
    with suppress(OperatingFailureError):
        await durability.durable()
