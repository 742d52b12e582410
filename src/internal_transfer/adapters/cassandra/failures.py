"""What a failure of the driver means for the caller: nothing was done, or the outcome is unknown."""

from collections.abc import Iterator
from contextlib import contextmanager

from cassandra import (  # type: ignore[import-untyped]
    AuthenticationFailed,
    CoordinationFailure,
    InvalidRequest,
    OperationTimedOut,
    RequestExecutionException,
    Timeout,
    Unauthorized,
)
from cassandra import Unavailable as NotEnoughReplicas
from cassandra.cluster import NoHostAvailable  # type: ignore[import-untyped]
from cassandra.connection import ConnectionException  # type: ignore[import-untyped]
from cassandra.protocol import (  # type: ignore[import-untyped]
    ErrorMessage,
    IsBootstrappingErrorMessage,
    RequestValidationException,
    SyntaxException,
)

from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable

REFUSED = (InvalidRequest, Unauthorized, SyntaxException)
"""The cluster refused a statement as such: the tables or the permissions do not fit."""

NOT_EXECUTED = (NoHostAvailable, NotEnoughReplicas, IsBootstrappingErrorMessage, AuthenticationFailed, *REFUSED)
"""After these it is certain that no replica was asked to do anything."""

FAILURES = (
    *NOT_EXECUTED,
    RequestExecutionException,
    CoordinationFailure,
    OperationTimedOut,
    Timeout,
    ConnectionException,
    ErrorMessage,
    OSError,
)


def may_be_decided(error: Exception) -> bool:
    """Tells whether a conditional write may have been decided, although it failed.

    That includes too few replicas: they may be too few only for its commit. By then it is decided, and the next serial
    read carries it out.
    """
    return not isinstance(error, NOT_EXECUTED) or isinstance(error, NotEnoughReplicas)


def of_request(
    system: System, settings: CqlSettings, error: Exception, *, nothing_done: bool
) -> Unavailable | OutcomeUnknown:
    """The failure to raise for a request."""
    assert isinstance(error, FAILURES), f"a bug, not a failure of the database: {error!r}"
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, NoHostAvailable):
        # The driver's own message names no node if none was left to try.
        what = f"no node can be reached {error.errors or ''}".rstrip()
    message = f"{settings!r}: {what}"
    return Unavailable(system, message) if nothing_done else OutcomeUnknown(system, message)


def of_connecting(system: System, settings: CqlSettings, error: Exception) -> Unavailable | StartRefusedError:
    """The failure to raise for a connection that could not be opened."""
    causes = error.errors if isinstance(error, NoHostAvailable) and isinstance(error.errors, dict) else {}
    if any(isinstance(cause, AuthenticationFailed) for cause in causes.values()):
        return StartRefusedError(f"{settings!r} refused the user {settings.user!r}; check user and password")
    if isinstance(error, (AuthenticationFailed, Unauthorized)):
        return StartRefusedError(f"{settings!r} refused the user {settings.user!r}: {error}")
    if isinstance(error, (InvalidRequest, RequestValidationException)):
        return StartRefusedError(f"{settings!r}: {error}; create the keyspace, or configure its replication")
    return Unavailable(system, f"{settings!r} could not be reached: {error}")


@contextmanager
def nothing_recorded() -> Iterator[None]:
    """Within it every failure is `Unavailable`: only hints are written, and a hint alone has no effect."""
    try:
        yield
    except OutcomeUnknown as error:
        raise Unavailable(error.system, error.message) from error


@contextmanager
def maybe_recorded() -> Iterator[None]:
    """Within it every failure is `OutcomeUnknown`: something may be on record already."""
    try:
        yield
    except OutcomeUnknown:
        raise
    except OperatingFailureError as error:
        raise OutcomeUnknown(error.system, error.message) from error
