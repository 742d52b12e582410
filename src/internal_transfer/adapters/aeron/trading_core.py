"""A trading core behind Aeron: commands are answered over the event bus, queries by replies.

Aeron keeps nothing. The scanner tells a command again that was lost, or whose verdict was, and a query is sent again
until its deadline. The messages are those of `wire/core_messages.py`, one in each Aeron message.
"""

from collections.abc import Sequence

from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.settings import COMMANDS, QUERIES, REPLIES, untethered
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import MESSAGE_BYTES_MAX, encode_command
from internal_transfer.wire.core_questions import AskBounds, AskedCore

# A query or its reply may be lost. The numbers are smaller than the messages allow, so that a reply also fits in the
# terms of a driver that has small ones.
BOUNDS = AskBounds(again_seconds=1.0, transfers_most=32, entries_most=128)

_REPLIES_TAKEN = 256


class AeronTradingCore(AskedCore):
    """Implements `TradingCore`. Create it before its client is started."""

    def __init__(self, client: AeronClient, *, clock: Clock, bounds: AskBounds = BOUNDS) -> None:
        super().__init__(clock, bounds)
        self._client = client
        connection = client.connection
        self._commands = client.outlet(connection.commands, COMMANDS, System.CORE)
        self._queries = client.outlet(connection.commands, QUERIES, System.CORE)
        self._replies = client.inlet(untethered(connection.heard_on or connection.verdicts), REPLIES, self._receive)

    @property
    def failure(self) -> str | None:
        """Why no commands can be sent, as far as is known; for readiness."""
        if self._client.failure is not None:
            return self._client.failure
        return None if self._commands.is_connected else "no core listens for commands"

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends commands; the verdicts come over the event bus.

        Raises `Unavailable` where the core or the media driver is away or takes none, and `OutcomeUnknown` where it
        took some of them.
        """
        await self._client.offer(self._commands, [encode_command(command) for command in commands])
        return [None] * len(commands)

    async def check(self) -> list[Finding]:
        """The findings of `doctor`."""
        connection = self._client.connection
        if self._client.failure is not None:
            advice = f"{self._client.failure}; start a media driver, or set aeron.directory"
            return [Finding("aeron driver", False, advice)]
        listens, largest = self._commands.is_connected, self._commands.message_bytes_max
        allowed = f"the driver's terms allow {largest} bytes, due are {MESSAGE_BYTES_MAX} (terms of 16 MiB or more)"
        lines = [
            Finding("aeron driver", True, f"connected in {connection.directory or 'the default directory'}"),
            Finding("aeron commands", listens, f"{connection.commands}: {'a' if listens else 'no'} core listens"),
            Finding("aeron messages", largest >= MESSAGE_BYTES_MAX, allowed),
        ]
        try:
            await self.verdicts([TransferId(1)])
        except OperatingFailureError as error:
            return [*lines, Finding("aeron core", False, error.message)]
        return [*lines, Finding("aeron core", True, "it answers questions")]

    async def _send(self, name: str, message: bytes) -> None:
        del name  # Aeron's messages have no keys.
        await self._client.offer(self._queries, [message])

    def _receive(self) -> None:
        while messages := self._replies.pop(_REPLIES_TAKEN):
            self._hear(messages)
