"""One end of a connection between two processes on this machine: writing, losing it, and a peer that does not read."""

import asyncio
from collections.abc import Callable
from typing import cast


class Connection(asyncio.Protocol):
    """Writes together what is sent during one turn of the loop; a subclass says how messages are told apart.

    `lost` is done when the connection has ended, from either side. `flow_changed` is called when `is_clogged` has
    changed: the peer has left more than `unwritten_bytes_max` unread, or reads again.

    uvloop writes what exceeds that bound at once, and what does not at the end of its iteration, after other callbacks
    that may take long. With 0 everything goes out at once.
    """

    def __init__(self, flow_changed: Callable[[], None] = lambda: None, *, unwritten_bytes_max: int = 0) -> None:
        self._flow_changed = flow_changed
        self._unwritten_bytes_max = unwritten_bytes_max
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self.is_clogged = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_lost(self) -> bool:
        """Tells whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods, but not the base class.
        self._transport.set_write_buffer_limits(high=self._unwritten_bytes_max)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a subclass may say why.
        """Completes `lost`."""
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """Notes that the peer does not read."""
        self.is_clogged = True
        self._flow_changed()

    def resume_writing(self) -> None:
        """Notes that the peer reads again."""
        self.is_clogged = False
        self._flow_changed()

    def pause(self, *, is_paused: bool) -> None:
        """Stops reading, or goes on; repeating it does no harm."""
        if self._transport is None or self._transport.is_closing():
            return
        if is_paused and self._transport.is_reading():
            self._transport.pause_reading()
        elif not is_paused and not self._transport.is_reading():
            self._transport.resume_reading()

    def write(self, *parts: bytes) -> None:
        """Writes the parts at the end of this turn of the loop; does nothing if the connection is lost."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += parts

    def _flush(self) -> None:
        parts, self._outgoing = self._outgoing, []
        if parts and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Closes the connection after everything that was sent has gone out."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()
