"""A trading core behind Aeron: orders are sent and answered over the event bus, questions by request and reply.

Aeron keeps nothing. An order that is lost, or whose verdict is, is told again by the scanner, and a question is asked
again until its deadline. The messages are those of `wire/core_messages.py`, one in each Aeron message.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
from msgspec import Struct

from internal_transfer.aeron.client import AeronClient
from internal_transfer.aeron.connection import COMMANDS, QUERIES, REPLIES, untethered
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, System, Unavailable
from internal_transfer.ports.trading_core import CoreBalance
from internal_transfer.wire.core_messages import (
    MESSAGE_BYTES_MAX,
    BalancesQuery,
    BalancesReply,
    EntriesQuery,
    EntriesReply,
    ModeReply,
    Query,
    RefusedReply,
    Reply,
    SetModeQuery,
    UnavailableReply,
    UndecodableError,
    VerdictsQuery,
    VerdictsReply,
    decode_reply,
    encode_command,
    encode_query,
    read_balances,
    read_verdict,
)

_log = structlog.get_logger(__name__)

TRANSFERS_PER_PAGE = 32
ENTRIES_PER_PAGE = 128
"""Smaller than the messages allow, so that a reply fits in the terms of a driver with small ones."""

_REPLIES_TAKEN = 256


class AskBounds(Struct, frozen=True, kw_only=True):
    """How long a question may take, after how long it is asked again, and how many may be open."""

    answer_seconds: float = 5.0
    again_seconds: float = 1.0
    open_most: int = 1_000


_BOUNDS = AskBounds()


class AeronTradingCore:
    """Implements `TradingCore`. To be made before its client is started."""

    def __init__(self, client: AeronClient, *, clock: Clock, bounds: AskBounds = _BOUNDS) -> None:
        self._client = client
        self._clock = clock
        self._bounds = bounds
        connection = client.connection
        self._commands = client.outlet(connection.commands, COMMANDS, System.CORE)
        self._queries = client.outlet(connection.commands, QUERIES, System.CORE)
        self._replies = client.inlet(untethered(connection.heard_on or connection.verdicts), REPLIES, self._receive)
        # Every process hears every reply, so the names of questions differ between processes.
        self._name = f"{int(clock.jitter() * 2**53):014x}"
        self._asked = 0
        self._open: dict[str, asyncio.Future[Reply]] = {}

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

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All stored verdicts of each transfer; raises `Unavailable` where the core does not answer."""
        found: list[list[Verdict]] = []
        for at in range(0, len(transfer_ids), TRANSFERS_PER_PAGE):
            page = transfer_ids[at : at + TRANSFERS_PER_PAGE]
            named, expires_at = self._next()
            texts = tuple(map(str, page))
            reply = await self._ask(VerdictsQuery(correlation_id=named, expires_at=expires_at, transfer_ids=texts))
            if not isinstance(reply, VerdictsReply) or len(reply.verdicts) != len(page):
                raise _unfitting(reply)
            with _decoding():
                found += [[read_verdict(verdict) for verdict in given] for given in reply.verdicts]
        return found

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of one owner; raises `Unavailable` where the core does not answer."""
        named, expires_at = self._next()
        reply = await self._ask(BalancesQuery(correlation_id=named, expires_at=expires_at, owner=owner))
        if not isinstance(reply, BalancesReply):
            raise _unfitting(reply)
        return read_balances(reply.balances)

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """What moved balances, page by page; raises `Unavailable` where the core does not answer."""
        found: list[tuple[int, Verdict]] = []
        while len(found) < most:
            named, expires_at = self._next()
            page = min(most - len(found), ENTRIES_PER_PAGE)
            reply = await self._ask(EntriesQuery(correlation_id=named, expires_at=expires_at, after=entry, most=page))
            if not isinstance(reply, EntriesReply):
                raise _unfitting(reply)
            with _decoding():
                found += [(each.number, read_verdict(each.verdict)) for each in reply.entries]
            if len(reply.entries) < page:
                break
            entry = found[-1][0]
        return found

    async def set_mode(self, mode: str) -> str:
        """Sets how a reference core that was started for demonstrations behaves, and answers its mode.

        Raises `Unavailable` where the core does not answer or has no modes.
        """
        named, expires_at = self._next()
        reply = await self._ask(SetModeQuery(correlation_id=named, expires_at=expires_at, mode=mode))
        if not isinstance(reply, ModeReply):
            raise _unfitting(reply)
        return reply.mode

    async def check(self) -> list[tuple[str, bool, str]]:
        """Lines for `doctor`: name, whether it is right, and what was found."""
        connection = self._client.connection
        if self._client.failure is not None:
            return [("aeron driver", False, f"{self._client.failure}; start a media driver, or set aeron.directory")]
        lines = [("aeron driver", True, f"connected in {connection.directory or 'the default directory'}")]
        listens = self._commands.is_connected
        lines.append(
            ("aeron commands", listens, f"{connection.commands}: {'a core listens' if listens else 'no core listens'}")
        )
        largest = self._commands.message_bytes_max
        lines.append(
            (
                "aeron messages",
                largest >= MESSAGE_BYTES_MAX,
                f"the driver's terms allow {largest} bytes, due are {MESSAGE_BYTES_MAX} (terms of 16 MiB or more)",
            )
        )
        try:
            await self.verdicts([TransferId(1)])
        except OperatingFailureError as error:
            return [*lines, ("aeron core", False, error.message)]
        return [*lines, ("aeron core", True, "it answers questions")]

    def _next(self) -> tuple[str, int]:
        """The name of a new question, and when nobody waits for its reply any more."""
        self._asked += 1
        return f"{self._name}-{self._asked}", self._clock.now_ms() + round(self._bounds.answer_seconds * 1000)

    async def _ask(self, query: Query) -> Reply:
        if len(self._open) >= self._bounds.open_most:
            raise Unavailable(System.CORE, f"{len(self._open)} questions to the core are open")
        named = query.correlation_id
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[named] = future
        message = encode_query(query)
        try:
            async with _within(self._bounds.answer_seconds):
                while True:
                    await self._client.offer(self._queries, [message])
                    # The reply may have been lost, and a question has no effect.
                    await asyncio.wait([future], timeout=self._bounds.again_seconds)
                    if future.done():
                        break
        finally:
            del self._open[named]
        reply = future.result()
        if isinstance(reply, UnavailableReply | RefusedReply):
            raise Unavailable(System.CORE, reply.reason)
        return reply

    def _receive(self) -> None:
        while messages := self._replies.pop(_REPLIES_TAKEN):
            for message in messages:
                try:
                    reply = decode_reply(message)
                except UndecodableError as poison:
                    _log.error("aeron_poison", reason=str(poison), message=message[:1000].decode(errors="replace"))
                    continue
                future = self._open.get(reply.correlation_id)
                if future is not None and not future.done():
                    future.set_result(reply)


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Unavailable(System.CORE, f"no answer within {seconds:g} s") from error


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except UndecodableError as error:
        raise Unavailable(System.CORE, f"the core's answer cannot be read: {error}") from error


def _unfitting(reply: Reply) -> Unavailable:
    return Unavailable(System.CORE, f"the core answered something else than was asked: {type(reply).__name__}")
