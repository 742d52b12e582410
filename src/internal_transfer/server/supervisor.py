"""How a process of the service ends: because it is told to, or because a part of it failed."""

import asyncio
import signal
from collections.abc import Iterator

import structlog

from internal_transfer.ports.errors import StartRefusedError

_log = structlog.get_logger(__name__)


class ServiceFailedError(Exception):
    """A part of the running service failed for good, and all of it has ended; the log has the whole story."""


def told_to_stop() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on, instead of what else they would do."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def reason_of(failed: ExceptionGroup) -> Exception:
    """What ended the service: why it must not start, or else what the log is told about every part that failed."""
    refused, others = failed.split(StartRefusedError)
    if refused is not None:
        return next(_leaves(refused))
    assert others is not None, "a group is not empty"
    causes = list(_leaves(others))
    for cause in causes:
        _log.error("service_failed", error=repr(cause), exc_info=cause)
    return ServiceFailedError(f"the service failed and has ended: {causes[0]!r}; the log has more")


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
