"""What a failed call to PostgreSQL means for its caller.

When the server answers with an error, it has certainly rolled the transaction back. When the connection broke, or no
answer came in time, a write may have been committed: its outcome is unknown.
"""

import ssl

import asyncpg

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable

_ROLLED_BACK = ("40001", "40P01")
"""Serialization failure and deadlock: the server rolled the call back in favour of another one."""

_BROKEN = ("57P", "08", "XX")
"""The server ended the connection during the call, or is in trouble. It can end a connection between a commit and the
answer, so these say nothing about the outcome."""

_BUG = ("22", "23", "42601", "42804")
"""Invalid data (also what the driver cannot encode) or a violated constraint: a bug, whatever the server's state."""

_TOO_SLOW = "57014"
_WHAT_TO_DO = {
    _TOO_SLOW: "the statement took too long and was rolled back",
    "53100": "the server's disk is full",
    "53300": "the server takes no more connections: raise max_connections, or lower `connections`",
    "25006": "the server is read-only (a standby?): give the address of the primary",
    "42501": "a permission is missing: `internal-transfer doctor` says which",
    "42P01": "a table is missing: run `internal-transfer migrate`",
    "42883": "a function is missing: run `internal-transfer migrate`",
    "3F000": "the schema is missing: run `internal-transfer migrate`",
}
_START = {
    "3D000": "the database does not exist: create it, or correct the url",
    "42501": "the role may not connect to this database: GRANT CONNECT",
}


def leaves_connection_usable(error: BaseException) -> bool:
    """Tells whether the server answered with an ordinary error, after which the connection can be used again."""
    state = state_of(error)
    return state is not None and not state.startswith(_BROKEN)


def may_be_repeated(error: BaseException, *, writes: bool) -> bool:
    """Tells whether to make the call again: the server rolled it back, or it only reads and its connection broke."""
    return state_of(error) in _ROLLED_BACK or (not writes and not leaves_connection_usable(error))


def outlasts_the_call(error: BaseException) -> bool:
    """Tells whether other calls will fail too until the server is repaired: its disk is full, or it is read-only."""
    state = state_of(error)
    return state in _WHAT_TO_DO and state != _TOO_SLOW


def state_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error that the server sent, or None."""
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def of_call(system: System, error: Exception, *, writes: bool) -> Exception:
    """The error to raise for one that came after a call was sent; returns a bug unchanged."""
    state = state_of(error)
    if state is not None and not state.startswith(_BROKEN):
        if state.startswith(_BUG) and state not in _WHAT_TO_DO:
            return error
        return Unavailable(system, f"PostgreSQL: {_WHAT_TO_DO.get(state, '') or error}")
    return lost(
        system, f"PostgreSQL: the connection broke during a call: {error or type(error).__name__}", writes=writes
    )


def lost(system: System, message: str, *, writes: bool) -> OperatingFailureError:
    """The error to raise for a call without an answer: a write may have taken effect."""
    return OutcomeUnknown(system, message) if writes else Unavailable(system, message)


def of_connecting(system: System, place: str, error: Exception) -> Exception:
    """The error to raise when no connection could be opened, so that nothing was sent."""
    state = state_of(error)
    if state is not None and (state.startswith("28") or state in _START):
        what = _START.get(state, "user or password is refused: correct them, or pg_hba.conf")
        return StartRefusedError(f"PostgreSQL at {place}: {what} ({error})")
    if isinstance(error, (ValueError, asyncpg.InterfaceError, ssl.SSLError)) and state is None:
        return StartRefusedError(f"PostgreSQL at {place}: {error}")
    detail = _WHAT_TO_DO.get(state or "", "") or str(error) or type(error).__name__
    return Unavailable(system, f"PostgreSQL at {place} cannot be reached: {detail}")
