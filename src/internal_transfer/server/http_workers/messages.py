"""What crosses the socket pair between an HTTP worker and the service, as lines of JSON (see `wire/json_lines.py`)."""

from typing import TypeAlias

from msgspec import Struct

from internal_transfer.domain.request import TransferRequest
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.services.answer import Answer


class Submission(Struct, frozen=True, array_like=True, tag=0):
    """A transfer that a user submits."""

    number: int
    request: TransferRequest
    wait_seconds: float


class Forwarded(Struct, frozen=True, array_like=True, tag=1):
    """A request that the service answers: the parts of its ASGI scope, and its body."""

    number: int
    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Counted(Struct, frozen=True, array_like=True, tag=2):
    """How many requests the worker has answered since the last such message: (route, outcome, code, how many)."""

    counts: list[tuple[str, str, str, float]]


class Ready(Struct, frozen=True, array_like=True, tag=3):
    """The worker takes connections."""


class Failure(Struct, frozen=True, array_like=True):
    """An operating failure; `unknown` if the transfer may have been recorded all the same."""

    unknown: bool
    system: System
    message: str

    def error(self) -> OperatingFailureError:
        """Returns the exception that it was in the service."""
        return (OutcomeUnknown if self.unknown else Unavailable)(self.system, self.message)


class SubmissionAnswer(Struct, frozen=True, array_like=True, tag=0):
    """The gateway's answer to a submission, or the failure that took its place."""

    number: int
    answer: Answer | None
    failure: Failure | None = None


class ForwardedAnswer(Struct, frozen=True, array_like=True, tag=1):
    """The HTTP answer to a forwarded request."""

    number: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Stop(Struct, frozen=True, array_like=True, tag=2):
    """Take no more connections, answer what was accepted, and end."""


FromWorker: TypeAlias = Submission | Forwarded | Counted | Ready
ToWorker: TypeAlias = SubmissionAnswer | ForwardedAnswer | Stop
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""The methods of requests that record nothing."""
