"""What crosses the socket pair between a worker and the service: lines of JSON, one message each.

Both ends are one program, so a line that cannot be read is a bug: it is logged, and the pair is given up at once, so
that everybody who waits learns that the outcome is unknown. JSON rather than MessagePack: amounts exceed 64 bits.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import msgspec
import structlog
from msgspec import Struct

from internal_transfer.domain.request import TransferRequest
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.services.answer import Answer

_log = structlog.get_logger(__name__)


class Order(Struct, frozen=True, array_like=True, tag=True):
    """A submission."""

    number: int
    request: TransferRequest
    wait_seconds: float


class Whole(Struct, frozen=True, array_like=True, tag=True):
    """A request that is answered elsewhere: the parts of its ASGI scope, and its body."""

    number: int
    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Counted(Struct, frozen=True, array_like=True, tag=True):
    """Requests that the worker answered since it last said so: (route, outcome, code, how many)."""

    counts: list[tuple[str, str, str, float]]


class Ready(Struct, frozen=True, array_like=True, tag=True):
    """The worker takes connections."""


class Failure(Struct, frozen=True, array_like=True):
    """An operating failure; `unknown` where the order may have been recorded all the same."""

    unknown: bool
    system: System
    message: str

    def error(self) -> OperatingFailureError:
        """The exception that it was at the other end."""
        return (OutcomeUnknown if self.unknown else Unavailable)(self.system, self.message)


class Told(Struct, frozen=True, array_like=True, tag=True):
    """The answer to an order, or the failure that took its place."""

    number: int
    outcome: Answer | None
    failure: Failure | None = None


class WholeAnswer(Struct, frozen=True, array_like=True, tag=True):
    """The answer to a whole request."""

    number: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Stop(Struct, frozen=True, array_like=True, tag=True):
    """Take no more connections, answer what was taken, and end."""


FromWorker: TypeAlias = Order | Whole | Counted | Ready
ToWorker: TypeAlias = Told | WholeAnswer | Stop


class Lines(asyncio.Protocol):
    """One end of the pair. What is sent during one turn of the loop is written together.

    What is written is not bounded here: a worker bounds what it has out, and there is one answer to each of these.
    """

    def __init__(self, decode: Callable[[bytes], list[Any]], take: Callable[[Any], None]) -> None:
        self._decode = decode
        self._take = take
        self._encode = msgspec.json.Encoder().encode
        self._unfinished: list[bytes] = []
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.

    def data_received(self, data: bytes) -> None:
        """Hands on the messages that are complete."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._unfinished.append(data)
            return
        lines = data[:end]
        if self._unfinished:
            lines = b"".join((*self._unfinished, lines))
        self._unfinished = [data[end:]] if end < len(data) else []
        try:
            for message in self._decode(lines):
                self._take(message)
        except Exception:  # noqa: BLE001 - the pair's outermost loop: a bug must neither hide nor keep anybody waiting.
            _log.exception("pair_failed")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - that it is lost is all there is to know.
        """Tells whoever waits for that."""
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, message: FromWorker | ToWorker) -> None:
        """Sends a message at the end of this turn; nothing is done where the pair is lost."""
        if self._transport is None:
            return
        line = self._encode(message)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(line)

    def _flush(self) -> None:
        if not self._outgoing:
            return
        self._outgoing.append(b"")
        lines, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(b"\n".join(lines))

    def close(self) -> None:
        """Closes the pair after everything that was sent has gone out."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Gives the pair up."""
        if self._transport is not None:
            self._transport.abort()
