"""The reference core behind Aeron: a host between two channels.

Aeron keeps nothing, so nothing is acknowledged: the service asks again for what the host lost or could not send, and
gets the stored first verdict. A verdict is on stable storage before it is sent.
"""

import asyncio
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import COMMANDS, QUERIES, REPLIES, VERDICTS
from internal_transfer.adapters.aeron.streams import Inlet, Outlet
from internal_transfer.hosts.core.host import CoreHost, HostState
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.wire.core_messages import (
    UnavailableReply,
    UndecodableError,
    decode_command,
    decode_query,
    encode_reply,
    encode_verdict,
)

_log = structlog.get_logger(__name__)

COMMANDS_MOST = 512
QUERIES_MOST = 32
"""How many are taken at once."""

RETRY_SECONDS = 0.5
SEND_SECONDS = 1.0
"""How long answers are offered if nobody takes them."""


class AeronCoreHost:
    """Takes commands and queries from Aeron and answers them; implements `Transport`.

    Create it before its client is started, which `run` does. While the core cannot carry commands out they wait, first
    here and then in Aeron, and the service is slowed down.
    """

    def __init__(
        self,
        host: CoreHost,
        client: AeronClient,
        *,
        clock: Clock,
        on_poison: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._host = host
        self._clock = clock
        self._on_poison = on_poison
        self._client = client
        connection = client.connection
        self._commands = _Mailbox(client, connection.commands, COMMANDS)
        self._queries = _Mailbox(client, connection.commands, QUERIES)
        self._verdicts = client.outlet(connection.verdicts, VERDICTS, System.BUS, exclusive=True)
        self._replies = client.outlet(connection.verdicts, REPLIES, System.CORE)
        self.unsent = 0
        """How many verdicts and replies could not be sent; the service asks for them again."""

    def state(self) -> HostState:
        """The host's state, with what keeps this transport from working."""
        state = self._host.state()
        if state.reason is None and self._client.failure is not None:
            return replace(state, reason=f"no Aeron media driver: {self._client.failure}")
        return state

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop; waits for a media driver that is away.

        Raises `StartRefusedError` where the library is missing or the driver refuses a channel.
        """
        await self._client.start()
        try:
            await self._host.serve(stop, self._carry_out(), self._answer())
        finally:
            await self._client.close()

    async def _carry_out(self) -> None:
        while True:
            commands = []
            for message in await self._commands.take(COMMANDS_MOST):
                try:
                    commands.append(decode_command(message))
                except UndecodableError as poison:
                    self._tell_of_poison(message, poison)
            while commands:
                try:
                    verdicts = await self._host.carry_out(commands)
                except OperatingFailureError as error:
                    _log.warning("orders_wait", orders=len(commands), error=str(error))
                    await self._clock.sleep(RETRY_SECONDS)
                else:
                    await self._send(self._verdicts, [encode_verdict(verdict) for verdict in verdicts])
                    break

    async def _answer(self) -> None:
        while True:
            for message in await self._queries.take(QUERIES_MOST):
                try:
                    query = decode_query(message)
                except UndecodableError as poison:
                    self._tell_of_poison(message, poison)
                    continue
                reply = await self._host.answer(query)
                if reply is None:
                    continue
                encoded = encode_reply(reply)
                if 0 < self._replies.message_bytes_max < len(encoded):
                    reason = f"the reply of {len(encoded)} bytes is too long for this driver's terms"
                    encoded = encode_reply(UnavailableReply(correlation_id=query.correlation_id, reason=reason))
                await self._send(self._replies, [encoded])

    async def _send(self, outlet: Outlet, messages: list[bytes]) -> None:
        try:
            await self._client.offer(outlet, messages, seconds=SEND_SECONDS)
        except OperatingFailureError as error:
            self.unsent += len(messages)
            _log.warning("answers_not_sent", answers=len(messages), error=str(error))

    def _tell_of_poison(self, message: bytes, poison: UndecodableError) -> None:
        _log.error("aeron_poison", reason=str(poison), message=message[:1000].decode(errors="replace"))
        self._on_poison(str(poison))


class _Mailbox:
    """The messages of one subscription, for a task that waits for them."""

    def __init__(self, client: AeronClient, channel: str, stream: int) -> None:
        self._some = asyncio.Event()
        self._inlet: Inlet = client.inlet(channel, stream, self._some.set)

    async def take(self, most: int) -> list[bytes]:
        """Waits for messages; returns at most this many, in the order in which they came."""
        while not (messages := self._inlet.pop(most)):
            self._some.clear()
            await self._some.wait()
        return messages
