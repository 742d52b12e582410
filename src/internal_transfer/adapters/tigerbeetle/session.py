"""One session with a TigerBeetle cluster, which sends and receives bytes.

It uses the C library of the official client, through the bindings that come with it. The client's own `ClientAsync` is
not used: there a caller that gives up leaves a packet behind that breaks `close`, and a result that it does not know
raises in the library's thread, so that the caller waits for ever. Facts from release 0.17.9 (`context.zig`):

- a packet and its data must not move until the library has called back; it always does, at the latest when the session
  is closed;
- the library has one request in flight and merges waiting ones into the next;
- when a session is evicted, the library calls back for every packet with the reason, and accepts no more.
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
    """Drops a line that equals the one before it; the library repeats some lines twice a second."""

    last: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message != self.last
        self.last = message
        return is_new


# The library logs to the logger `tigerbeetle`; each debug line would cost a call into Python. A failure to connect is
# logged once, until there is an answer again.
tigerbeetle.configure_logging(debug=False)
_once = _Once()
logging.getLogger("tigerbeetle").addFilter(_once)


class WrongReleaseError(OutcomeUnknown):
    """The server does not accept this release of the client."""


class SessionRefusedError(Unavailable):
    """The library cannot create a session with these settings, or has no room for one."""


class TooMuchDataError(Unavailable):
    """The call had more events than the server accepts, so the library did not send it."""


class _Packet(Struct, eq=False):
    """A packet, which the library may read until it calls back, and the future of its reply."""

    packet: Any
    payload: bytes
    reply: asyncio.Future[bytes]
    abandoned: bool = False


class Session:
    """A session of this process, for use on the event loop that created it.

    Its creation raises `SessionRefusedError` for an invalid address. It does not wait for a connection: the library
    connects by itself, and never stops trying.
    """

    def __init__(self, *, cluster_id: int, addresses: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._packets: dict[int, _Packet] = {}
        # The replies in order; the library's thread adds to them, and wakes the loop unless it is already awake.
        self._returned: deque[tuple[int, int, bytes]] = deque()
        self._is_woken = False
        self._numbers = count(1)
        self._client = bindings.CClient()
        self.abandoned = 0
        """The number of requests whose callers gave up and for which the library has not called back."""
        self.ended: str | None = None
        """Why the session has ended; None while it lives."""
        encoded = addresses.encode()
        cluster = (ctypes.c_uint8 * 16).from_buffer_copy(cluster_id.to_bytes(16, "little"))
        self._key = next(_keys)
        sessions[self._key] = self
        status = bindings.tb_client_init(
            ctypes.byref(self._client), ctypes.byref(cluster), encoded, len(encoded), self._key, _on_completion
        )
        if status != bindings.InitStatus.SUCCESS:
            del sessions[self._key]
            name = bindings.InitStatus(status).name.lower()
            raise SessionRefusedError(
                System.LEDGER,
                f"no session can be created with the addresses {addresses!r} ({name}): give one IP address and port"
                " for each replica, in the order of the replicas",
            )

    @property
    def in_flight(self) -> int:
        """The number of requests for which the library has not called back, including abandoned ones."""
        return len(self._packets)

    async def request(self, operation: int, payload: bytes, seconds: float) -> bytes:
        """Sends a request and waits this long for its reply; a request can never be taken back.

        Raises `OutcomeUnknown` when no reply came, and `Unavailable` when the request was not sent.
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
            raise Unavailable(System.LEDGER, f"nothing was sent: the session with TigerBeetle has ended: {self.ended}")
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
        """Ends the session; waiting callers get `OutcomeUnknown`. A second call does nothing."""
        if self.ended is None:
            self.ended = "it was closed"
        # The library joins its thread here, which calls back for everything in flight.
        ended = await asyncio.to_thread(bindings.tb_client_deinit, ctypes.byref(self._client))
        if ended == bindings.ClientStatus.OK:
            del sessions[self._key]

    def called_back(self, number: int, status: int, reply: bytes) -> None:
        """Passes a reply from the library's thread to the event loop."""
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
            System.LEDGER,
            "TigerBeetle accepts too few events in a call: was it started with --development?",
        )
    if status in _WRONG_RELEASE:
        return WrongReleaseError(
            System.LEDGER,
            f"the tigerbeetle client, release {CLIENT_RELEASE}, is {_WRONG_RELEASE[status]} for the server: install the"
            " client's release that matches the server",
        )
    reason = _STATUS_NAMES.get(status, str(status))
    return OutcomeUnknown(System.LEDGER, f"the session with TigerBeetle ended before the answer came: {reason}")


_keys = count(1)
sessions: dict[int, Session] = {}
"""Sessions by the number that the library calls back with.

An evicted session stays here for ever, with its few hundred bytes: the library's thread uses its memory until the
thread ends, and does not say when it does.
"""


def completed(key: int, packet: Any, _timestamp: int, reply: int | None, reply_size: int) -> None:
    """Called by the library in its own thread; the reply is the library's memory, valid only during this call."""
    called_back = packet.contents
    content = ctypes.string_at(reply, reply_size) if reply_size and reply else b""
    sessions[key].called_back(called_back.user_data, called_back.status, content)


_on_completion = bindings.OnCompletion(completed)
