"""A trading core behind Aeron: orders are sent and answered over the event bus, questions by request and reply.

Aeron keeps nothing. An order that is lost, or whose verdict is, is told again by the scanner, and a question is asked
again until its deadline. The messages are those of `wire/core_messages.py`, one in each Aeron message.
"""

from collections.abc import Sequence

from internal_transfer.adapters.aeron.client import AeronClient
from internal_transfer.adapters.aeron.connection import COMMANDS, QUERIES, REPLIES, untethered
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, System
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import MESSAGE_BYTES_MAX, encode_command
from internal_transfer.wire.core_questions import AskBounds, AskedCore

# A question has no effect, and it or its reply may be lost. Smaller than the messages allow, so that a reply fits in
# the terms of a driver with small ones.
BOUNDS = AskBounds(again_seconds=1.0, transfers_most=32, entries_most=128)

_REPLIES_TAKEN = 256


class AeronTradingCore(AskedCore):
    """Implements `TradingCore`. To be made before its client is started."""

    def __init__(self, client: AeronClient, *, clock: Clock, bounds: AskBounds = BOUNDS) -> None:
        super().__init__(clock, bounds)
        self._client = client
        connection = client.connection
        self._commands = client.outlet(connection.commands, COMMANDS, System.CORE)
        self._queries = client.outlet(connection.commands, QUERIES, System.CORE)
        self._replies = client.inlet(untethered(connection.heard_on or connection.verdicts), REPLIES, self._receive)

    @property
    def failure(self) -> str | None:
        """Why the core cannot be told anything, as far as is known; for readiness."""
        if self._client.failure is not None:
            return self._client.failure
        return None if self._commands.is_connected else "no core listens for orders"

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends orders; the verdicts come over the event bus.

        Raises `Unavailable` where the core or the media driver is away or takes none, and `OutcomeUnknown` where it
        took some of them.
        """
        await self._client.offer(self._commands, [encode_command(command) for command in commands])
        return [None] * len(commands)

    async def check(self) -> list[Finding]:
        """Lines for `doctor`: name, whether it is right, and what was found."""
        connection = self._client.connection
        if self._client.failure is not None:
            return [
                Finding("aeron driver", False, f"{self._client.failure}; start a media driver, or set aeron.directory")
            ]
        lines = [Finding("aeron driver", True, f"connected in {connection.directory or 'the default directory'}")]
        listens = self._commands.is_connected
        lines.append(
            Finding(
                "aeron commands",
                listens,
                f"{connection.commands}: {'a core listens' if listens else 'no core listens'}",
            )
        )
        largest = self._commands.message_bytes_max
        lines.append(
            Finding(
                "aeron messages",
                largest >= MESSAGE_BYTES_MAX,
                f"the driver's terms allow {largest} bytes, due are {MESSAGE_BYTES_MAX} (terms of 16 MiB or more)",
            )
        )
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
