"""The reference core behind Aeron: a host between two channels.

Aeron keeps nothing, so nothing is acknowledged: what the host loses, or could not send, the service asks for again, and
gets the stored first verdict. A verdict is on stable storage before it is sent.
"""

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct
from msgspec.structs import replace

from internal_transfer.adapters.aeron.client import AeronClient, Inlet, Outlet
from internal_transfer.adapters.aeron.connection import COMMANDS, QUERIES, REPLIES, VERDICTS, AeronConnection
from internal_transfer.hosts.core.host import CoreHost, HostState, Phase
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


class HostBounds(Struct, frozen=True, kw_only=True):
    """How much is carried out at once, how long to wait after a failure, and how long to try to send."""

    commands_most: int = 512
    queries_most: int = 32
    failure_seconds: float = 0.5
    send_seconds: float = 1.0


_BOUNDS = HostBounds()


class AeronCoreHost:
    """Takes orders and questions from Aeron and answers them; implements `Transport`.

    While the core cannot carry orders out they wait, first here and then in Aeron, and the service is slowed down.
    """

    def __init__(
        self,
        host: CoreHost,
        connection: AeronConnection,
        *,
        clock: Clock,
        bounds: HostBounds = _BOUNDS,
        on_poison: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._host = host
        self._clock = clock
        self._bounds = bounds
        self._on_poison = on_poison
        self._client = AeronClient(connection, clock=clock)
        self._commands = _Mailbox(self._client, connection.commands, COMMANDS)
        self._queries = _Mailbox(self._client, connection.commands, QUERIES)
        self._verdicts = self._client.outlet(connection.verdicts, VERDICTS, System.BUS, exclusive=True)
        self._replies = self._client.outlet(connection.verdicts, REPLIES, System.CORE)
        self.unsent = 0
        """Verdicts and replies that could not be sent, so that they have to be asked for again."""

    def state(self) -> HostState:
        """The host's state, and what this transport adds to it."""
        state = self._host.state()
        if state.reason is None and self._client.failure is not None:
            return replace(state, reason=f"no Aeron media driver: {self._client.failure}")
        return state

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop; a media driver that is away is waited for.

        Raises `StartRefusedError` where the library is missing or the driver refuses a channel.
        """
        await self._client.start()
        self._host.phase = Phase.RUNNING
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(self._carry_out()), tasks.create_task(self._answer())]
                await stop.wait()
                # Whatever this cuts off is told again, and answered with the stored verdicts.
                for task in working:
                    task.cancel()
        finally:
            self._host.phase = Phase.STOPPING
            await self._client.close()

    async def _carry_out(self) -> None:
        while True:
            commands = []
            for message in await self._commands.take(self._bounds.commands_most):
                try:
                    commands.append(decode_command(message))
                except UndecodableError as poison:
                    self._tell_of_poison(message, poison)
            while commands:
                try:
                    verdicts = await self._host.carry_out(commands)
                except OperatingFailureError as error:
                    _log.warning("orders_wait", orders=len(commands), error=str(error))
                    await self._clock.sleep(self._bounds.failure_seconds)
                    continue
                await self._send(self._verdicts, [encode_verdict(verdict) for verdict in verdicts])
                break

    async def _answer(self) -> None:
        while True:
            for message in await self._queries.take(self._bounds.queries_most):
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
            await self._client.offer(outlet, messages, seconds=self._bounds.send_seconds)
        except OperatingFailureError as error:
            self.unsent += len(messages)
            _log.warning("answers_not_sent", answers=len(messages), error=str(error))

    def _tell_of_poison(self, message: bytes, poison: UndecodableError) -> None:
        _log.error("aeron_poison", reason=str(poison), message=message[:1000].decode(errors="replace"))
        self._on_poison(str(poison))


class _Mailbox:
    """What came in on one subscription, for a task that waits for it."""

    def __init__(self, client: AeronClient, channel: str, stream: int) -> None:
        self._some = asyncio.Event()
        self._inlet: Inlet = client.inlet(channel, stream, self._some.set)

    async def take(self, most: int) -> list[bytes]:
        """Waits for messages; at most so many, in the order in which they came."""
        while not (messages := self._inlet.pop(most)):
            self._some.clear()
            await self._some.wait()
        return messages
