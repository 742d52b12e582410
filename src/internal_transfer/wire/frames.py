"""Frames of MessagePack on a connection: a length as four bytes, the most significant first, then one message."""

from collections.abc import Callable
from struct import Struct as Layout
from typing import Any

import msgspec

from internal_transfer.wire.connection import Connection

FRAME_BYTES_MAX = 2 * 1024 * 1024
UNWRITTEN_BYTES_MAX = 16 * 1024 * 1024
"""How much the peer may leave unread before the connection `is_clogged`."""

_LENGTH = Layout(">I")
_encode = msgspec.msgpack.Encoder().encode


class FrameError(Exception):
    """The peer does not speak this protocol."""


class Frames(Connection):
    """One end of a connection.

    `take` gets each frame's contents. If it raises `FrameError`, or a frame is too large, the connection is closed at
    once and `broken` says why.
    """

    def __init__(self, take: Callable[[bytes], None], flow_changed: Callable[[], None] = lambda: None) -> None:
        super().__init__(flow_changed, unwritten_bytes_max=UNWRITTEN_BYTES_MAX)
        self._take = take
        self._unread = bytearray()
        self.broken: str | None = None

    def data_received(self, data: bytes) -> None:
        """Takes the frames that are complete."""
        unread = self._unread
        unread += data
        begin, end = 0, len(unread)
        while end - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(unread, begin)
            if length > FRAME_BYTES_MAX:
                self._break(f"a frame of {length} bytes is larger than {FRAME_BYTES_MAX}")
                return
            next_begin = begin + _LENGTH.size + length
            if next_begin > end:
                break
            try:
                self._take(bytes(unread[begin + _LENGTH.size : next_begin]))
            except FrameError as error:
                self._break(str(error))
                return
            begin = next_begin
        del unread[:begin]

    def _break(self, reason: str) -> None:
        self.broken = reason
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keeps the reason, and completes `lost`."""
        self.broken = self.broken or (str(exc) if exc else None)
        super().connection_lost(exc)

    def send(self, message: msgspec.Struct) -> None:
        """Sends a message at the end of this turn; does nothing if the connection is lost."""
        contents = _encode(message)
        assert len(contents) <= FRAME_BYTES_MAX, "callers bound their messages"
        self.write(_LENGTH.pack(len(contents)), contents)


def decode(decoder: msgspec.msgpack.Decoder[Any], contents: bytes) -> Any:
    """Returns a frame's message; raises `FrameError` if it cannot be read."""
    try:
        return decoder.decode(contents)
    except msgspec.DecodeError as error:
        raise FrameError(f"a frame cannot be read: {error}") from error
