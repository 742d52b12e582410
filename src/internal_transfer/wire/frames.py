"""Frames of MessagePack on a connection: a length as four bytes, the most significant first, then one message."""

import asyncio
from collections.abc import Callable
from struct import Struct as Layout
from typing import Any, cast

import msgspec

FRAME_BYTES_MAX = 2 * 1024 * 1024
UNWRITTEN_BYTES_MAX = 16 * 1024 * 1024
"""So much may wait for the other side to read it before `is_clogged`."""

_LENGTH = Layout(">I")
_encode = msgspec.msgpack.Encoder().encode


class FrameError(Exception):
    """The other side does not speak this protocol."""


class Frames(asyncio.Protocol):
    """One end of a connection. What is sent during one turn of the loop is written together.

    `take` gets each frame's contents; where it raises `FrameError`, or a frame is too large, the connection is given up
    and `broken` says why. `lost` is done when the connection has ended, from either side. `flow_changed` is called when
    `is_clogged` has changed: the other side does not read what was sent, or reads again.
    """

    def __init__(self, take: Callable[[bytes], None], flow_changed: Callable[[], None] = lambda: None) -> None:
        self._take = take
        self._flow_changed = flow_changed
        self.is_clogged = False
        self._unread = bytearray()
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.broken: str | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_lost(self) -> bool:
        """Tells whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        self._transport.set_write_buffer_limits(high=UNWRITTEN_BYTES_MAX)

    def pause_writing(self) -> None:
        """Takes note that the other side does not read."""
        self.is_clogged = True
        self._flow_changed()

    def resume_writing(self) -> None:
        """Takes note that the other side reads again."""
        self.is_clogged = False
        self._flow_changed()

    def data_received(self, data: bytes) -> None:
        """Hands on the frames that are complete."""
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
        """Tells whoever waits for that."""
        self._transport = None
        self.broken = self.broken or (str(exc) if exc else None)
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, message: msgspec.Struct) -> None:
        """Sends a message at the end of this turn; nothing is done where the connection is lost."""
        contents = _encode(message)
        assert len(contents) <= FRAME_BYTES_MAX, "messages are bounded by those who make them"
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += (_LENGTH.pack(len(contents)), contents)

    def _flush(self) -> None:
        frames, self._outgoing = self._outgoing, []
        if frames and not self.is_lost:
            cast("asyncio.Transport", self._transport).write(b"".join(frames))

    def pause(self, *, is_paused: bool) -> None:
        """Stops reading, or goes on; saying it again does no harm."""
        if self._transport is None or self._transport.is_closing():
            return
        if is_paused and self._transport.is_reading():
            self._transport.pause_reading()
        elif not is_paused and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self) -> None:
        """Closes the connection after everything that was sent has gone out."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Gives the connection up."""
        if self._transport is not None:
            self._transport.abort()


def decode(decoder: msgspec.msgpack.Decoder[Any], contents: bytes) -> Any:
    """A frame's message; raises `FrameError` where it is none."""
    try:
        return decoder.decode(contents)
    except msgspec.DecodeError as error:
        raise FrameError(f"a frame cannot be read: {error}") from error
