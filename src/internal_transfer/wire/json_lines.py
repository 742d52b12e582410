"""Lines of JSON on a connection between two processes of one program, one message each.

JSON and not MessagePack, because amounts exceed 64 bits. Both ends are the same program, so a line that cannot be read
is a bug: it is logged, and the connection is closed at once, so that everybody who waits learns that the outcome is
unknown.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from internal_transfer.wire.connection import Connection

_log = structlog.get_logger(__name__)


class Lines(Connection):
    """One end of the connection. `decode` reads complete lines, and `take` gets each message.

    Nothing bounds what is written: one end bounds how many requests it has out, and each has one answer.
    """

    def __init__(self, decode: Callable[[bytes], list[Any]], take: Callable[[Any], None]) -> None:
        super().__init__()
        self._decode = decode
        self._take = take
        self._encode = msgspec.json.Encoder().encode
        self._unfinished: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Takes the messages that are complete."""
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
        except Exception:  # noqa: BLE001 - the connection's outermost loop: a bug must not keep anybody waiting.
            _log.exception("pair_failed")
            self.abort()

    def send(self, message: msgspec.Struct) -> None:
        """Sends a message at the end of this turn; does nothing if the connection is lost."""
        self.write(self._encode(message), b"\n")
