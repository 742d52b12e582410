"""What a failed call to PostgreSQL means for those who made it.

A statement that the server answered with an error was taken back, and with it its transaction; that is certain. When
the connection broke, or the answer did not come in time, a write may have been committed: unknown.
"""

import ssl

import asyncpg

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, StartRefusedError, System, Unavailable

RETRIED = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: taken back by the server, to be tried again."""

_BROKEN = ("57P", "08", "XX")
"""The connection was ended under the call, or the server is in trouble. A backend can be ended between its commit and
its answer, so these say nothing about the outcome."""

_BUG = ("22", "23", "42601", "42804")
"""Wrong data (also what the driver cannot encode) or broken constraints: no state of a healthy system leads here."""

_TOO_SLOW = "57014"
_WHAT_TO_DO = {
    _TOO_SLOW: "the statement took too long and was taken back",
    "53100": "the server's disk is full",
    "53300": "the server takes no more connections: raise max_connections, or lower `connections`",
    "25006": "the server only reads (a standby?): give the address of the primary",
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
    """Tells whether the server answered with an ordinary error, after which its connection goes on."""
    state = state_of(error)
    return state is not None and not state.startswith(_BROKEN)


def outlasts_the_call(error: BaseException) -> bool:
    """Tells whether others will fail alike until somebody mends the server: its disk is full, it only reads."""
    state = state_of(error)
    return state in _WHAT_TO_DO and state != _TOO_SLOW


def state_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error from the server."""
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def of_call(system: System, error: Exception, *, writes: bool) -> Exception:
    """What to raise for an error that came after a call was sent; bugs come back as they are."""
    state = state_of(error)
    if state is not None and not state.startswith(_BROKEN):
        if state.startswith(_BUG) and state not in _WHAT_TO_DO:
            return error
        return Unavailable(system, f"PostgreSQL: {_WHAT_TO_DO.get(state, '') or error}")
    return lost(
        system, f"PostgreSQL: the connection broke during a call: {error or type(error).__name__}", writes=writes
    )


def lost(system: System, message: str, *, writes: bool) -> OperatingFailureError:
    """What a call without an answer means: a read can be made again, a write may have been done."""
    return OutcomeUnknown(system, message) if writes else Unavailable(system, message)


def of_connecting(system: System, place: str, error: Exception) -> Exception:
    """What to raise where no connection could be made: nothing was sent."""
    state = state_of(error)
    if state is not None and (state.startswith("28") or state in _START):
        what = _START.get(state, "user or password is refused: correct them, or pg_hba.conf")
        return StartRefusedError(f"PostgreSQL at {place}: {what} ({error})")
    if isinstance(error, (ValueError, asyncpg.InterfaceError, ssl.SSLError)) and state is None:
        return StartRefusedError(f"PostgreSQL at {place}: {error}")
    detail = _WHAT_TO_DO.get(state or "", "") or str(error) or type(error).__name__
    return Unavailable(system, f"PostgreSQL at {place} cannot be reached: {detail}")
