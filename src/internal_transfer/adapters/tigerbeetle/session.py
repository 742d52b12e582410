"""One session with a TigerBeetle cluster: bytes go in, and bytes or the reason why there are none come out.

This stands on the C library of the official client, through the bindings that come with it. Its own `ClientAsync` is
not used: a waiter that gives up leaves a packet behind there that breaks `close`, and a result that it does not know
raises in the library's thread, so that the caller waits for ever. Facts from release 0.17.9 (`context.zig`):

- a packet and its data must stay where they are until the library has called back; it always does, at the latest when
  the session is closed;
- the library has one request in flight and merges what waits into the next;
- once a session is evicted what was submitted is called back with the reason, and nothing more can be submitted.
"""

import asyncio
import ctypes
import logging
from collections import deque
from collections.abc import Mapping
from importlib.metadata import version
from itertools import count
from typing import Any

import tigerbeetle
from msgspec import Struct
from tigerbeetle import bindings

from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable

CLIENT_RELEASE = version("tigerbeetle")

_OK = int(bindings.PacketStatus.OK)
_TOO_MUCH_DATA = int(bindings.PacketStatus.TOO_MUCH_DATA)
_WRONG_RELEASE: Mapping[int, str] = {
    int(bindings.PacketStatus.CLIENT_RELEASE_TOO_LOW): "too old",
    int(bindings.PacketStatus.CLIENT_RELEASE_TOO_HIGH): "too new",
}
_STATUS_NAMES: Mapping[int, str] = {int(status): status.name.lower() for status in bindings.PacketStatus}


class _Once(logging.Filter):
    """Lets a line through that is not the one before it; the library repeats some twice a second."""

    last: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message != self.last
        self.last = message
        return is_new


# The library's own log goes to the logger `tigerbeetle`; its debug lines would cost a call into Python each. That it
# cannot connect is said once until there is an answer again.
tigerbeetle.configure_logging(debug=False)
_once = _Once()
logging.getLogger("tigerbeetle").addFilter(_once)


class WrongReleaseError(OutcomeUnknown):
    """The server does not speak with this release of the client."""


class SessionRefusedError(Unavailable):
    """The library does not make a session for these settings, or has no room for one."""


class TooMuchDataError(Unavailable):
    """The server takes fewer events in a call than this one had; the library did not send them."""


class _Packet(Struct, eq=False):
    """What the library may look at until it calls back, and who waits for that."""

    packet: Any
    payload: bytes
    reply: asyncio.Future[bytes]
    abandoned: bool = False


class Session:
    """A session of this process; all methods are for the event loop that made it.

    Making one raises `SessionRefusedError` for an address that is none. It is not yet connected then: the library
    does that by itself, and never stops trying.
    """

    def __init__(self, *, cluster_id: int, addresses: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._packets: dict[int, _Packet] = {}
        # What came back, in order; the library's thread adds to it, and wakes the loop only where it is not awake yet.
        self._returned: deque[tuple[int, int, bytes]] = deque()
        self._is_woken = False
        self._numbers = count(1)
        self._client = bindings.CClient()
        self.abandoned = 0
        """Requests that nobody waits for any more and that the library has not called back for."""
        self.ended: str | None = None
        """Why nothing more can be submitted, once that is so."""
        encoded = addresses.encode()
        cluster = (ctypes.c_uint8 * 16).from_buffer_copy(cluster_id.to_bytes(16, "little"))
        self._key = next(_keys)
        _sessions[self._key] = self
        status = bindings.tb_client_init(
            ctypes.byref(self._client), ctypes.byref(cluster), encoded, len(encoded), self._key, _on_completion
        )
        if status != bindings.InitStatus.SUCCESS:
            del _sessions[self._key]
            name = bindings.InitStatus(status).name.lower()
            raise SessionRefusedError(
                System.LEDGER,
                f"no session can be made for the addresses {addresses!r} ({name}): give IP addresses with ports, one"
                " for each replica, in the order of the replicas",
            )

    @property
    def in_flight(self) -> int:
        """Requests that the library has not called back for, abandoned ones too."""
        return len(self._packets)

    async def request(self, operation: int, payload: bytes, seconds: float) -> bytes:
        """Sends a request and waits for its reply, no longer than this; nothing ever takes the request back.

        Raises `OutcomeUnknown` when no reply came, and `Unavailable` where the request was not sent.
        """
        number = next(self._numbers)
        waiting = _Packet(bindings.CPacket(), payload, self._loop.create_future())
        packet = waiting.packet
        packet.user_data = number
        packet.operation = operation
        packet.data_size = len(payload)
        packet.data = ctypes.cast(ctypes.c_char_p(payload), ctypes.c_void_p)
        self._packets[number] = waiting
        if bindings.tb_client_submit(ctypes.byref(self._client), ctypes.byref(packet)) != bindings.ClientStatus.OK:
            del self._packets[number]
            self.ended = self.ended or "it has ended"
            raise Unavailable(System.LEDGER, f"nothing was sent: the session with TigerBeetle is over: {self.ended}")
        try:
            async with asyncio.timeout(seconds):
                return await waiting.reply
        except TimeoutError as error:
            raise OutcomeUnknown(
                System.LEDGER, f"TigerBeetle did not answer within {seconds:g} s; it may still carry the request out"
            ) from error
        finally:
            if number in self._packets:
                waiting.abandoned = True
                self.abandoned += 1

    async def close(self) -> None:
        """Ends the session; whoever still waits gets `OutcomeUnknown`. A second call does nothing."""
        if self.ended is None:
            self.ended = "it was closed"
        # The library joins its thread here, which calls back for all that is in flight.
        ended = await asyncio.to_thread(bindings.tb_client_deinit, ctypes.byref(self._client))
        if ended == bindings.ClientStatus.OK:
            del _sessions[self._key]

    def called_back(self, number: int, status: int, reply: bytes) -> None:
        """Hands what the library called back with, in its thread, to the event loop."""
        self._returned.append((number, status, reply))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._take_returned)

    def _take_returned(self) -> None:
        self._is_woken = False
        while self._returned:
            self._complete(*self._returned.popleft())

    def _complete(self, number: int, status: int, reply: bytes) -> None:
        waiting = self._packets.pop(number)
        if waiting.abandoned:
            self.abandoned -= 1
        if status not in {_OK, _TOO_MUCH_DATA} and self.ended is None:
            self.ended = _STATUS_NAMES.get(status, str(status))
        if waiting.reply.done():
            return
        if status == _OK:
            _once.last = None
            waiting.reply.set_result(reply)
        else:
            waiting.reply.set_exception(_failure_of(status))


def _failure_of(status: int) -> OutcomeUnknown | Unavailable:
    if status == _TOO_MUCH_DATA:
        return TooMuchDataError(
            System.LEDGER, "TigerBeetle takes fewer events in a call than it should: was it started with --development?"
        )
    if status in _WRONG_RELEASE:
        return WrongReleaseError(
            System.LEDGER,
            f"the tigerbeetle client, release {CLIENT_RELEASE}, is {_WRONG_RELEASE[status]} for the server: install the"
            " client of the server's release",
        )
    reason = _STATUS_NAMES.get(status, str(status))
    return OutcomeUnknown(System.LEDGER, f"the session with TigerBeetle ended before its answer came: {reason}")


_keys = count(1)
_sessions: dict[int, Session] = {}
"""Sessions by the number that the library calls back with.

One that was evicted stays here for ever, with its few hundred bytes: the library's thread uses its memory until that
thread has ended, and does not tell when that is.
"""


def _called_back(key: int, packet: Any, _timestamp: int, reply: int | None, reply_size: int) -> None:
    """Is called by the library, in its own thread; the reply is its memory, and only for as long as this takes."""
    called_back = packet.contents
    content = ctypes.string_at(reply, reply_size) if reply_size and reply else b""
    _sessions[key].called_back(called_back.user_data, called_back.status, content)


_on_completion = bindings.OnCompletion(_called_back)
