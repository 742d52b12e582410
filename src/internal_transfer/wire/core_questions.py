"""Asks a trading core that is reached by messages, and checks its replies.

Every query carries a name that its reply repeats; every process hears all replies and keeps its own. Nothing depends on
the arrival of a reply: a caller who gets none asks again. A core is another program, so each reply is checked against
its query.
"""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TypeVar

import structlog
from msgspec import Struct

from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.trading_core import CoreBalance
from internal_transfer.wire.core_messages import (
    BalancesQuery,
    BalancesReply,
    EntriesQuery,
    EntriesReply,
    Query,
    RefusedReply,
    Reply,
    UnavailableReply,
    UndecodableError,
    VerdictFields,
    VerdictsQuery,
    VerdictsReply,
    decode_reply,
    encode_query,
    read_balances,
    read_verdict,
)

_log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Reply)


class AskBounds(Struct, frozen=True, kw_only=True):
    """How long a query may take, after how long it is sent again (None: never), and how many may be open.

    One query names at most `transfers_most` transfers, and asks for at most `entries_most` entries.
    """

    answer_seconds: float = 5.0
    again_seconds: float | None
    open_most: int = 1_000
    transfers_most: int
    entries_most: int


class AskedCore(ABC):
    """The part of `TradingCore` that asks. A transport sends what `_send` gets, and passes what comes to `_hear`."""

    def __init__(self, clock: Clock, bounds: AskBounds) -> None:
        self._clock = clock
        self._ask_bounds = bounds
        # Every process hears every reply, so the names of queries differ between processes.
        self._name = f"{clock.now_ms():x}-{os.getpid()}-{int(clock.jitter() * 2**48):x}"
        self._asked = 0
        self._open: dict[str, asyncio.Future[Reply]] = {}

    @abstractmethod
    async def _send(self, name: str, message: bytes) -> None:
        """Sends a query; raises `Unavailable` where it was not sent, and `OutcomeUnknown` where it may have been."""

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All stored verdicts of each transfer; raises `Unavailable` while the core does not answer as it should."""
        found: list[list[Verdict]] = []
        most = self._ask_bounds.transfers_most
        for start in range(0, len(transfer_ids), most):
            asked = transfer_ids[start : start + most]
            name, expires_at = self._next()
            texts = tuple(map(str, asked))
            query = VerdictsQuery(correlation_id=name, expires_at=expires_at, transfer_ids=texts)
            reply = await self._ask(query, VerdictsReply)
            if len(reply.verdicts) != len(asked):
                raise _faulty(f"{len(reply.verdicts)} lists of verdicts for {len(asked)} transfers")
            for transfer_id, given in zip(asked, reply.verdicts, strict=True):
                verdicts = [_verdict(each) for each in given]
                if any(verdict.transfer_id != transfer_id for verdict in verdicts):
                    raise _faulty(f"verdicts about another transfer than {transfer_id}")
                found.append(verdicts)
        return found

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of one owner; raises `Unavailable` while the core does not answer as it should."""
        name, expires_at = self._next()
        reply = await self._ask(BalancesQuery(correlation_id=name, expires_at=expires_at, owner=owner), BalancesReply)
        balances = read_balances(reply.balances)
        if any(balance.account.owner != owner for balance in balances):
            raise _faulty(f"balances of another owner than {owner}")
        return balances

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """What moved balances, by rising number; raises `Unavailable` while the core does not answer as it should."""
        entries: list[tuple[int, Verdict]] = []
        while len(entries) < most:
            asked = min(most - len(entries), self._ask_bounds.entries_most)
            name, expires_at = self._next()
            query = EntriesQuery(correlation_id=name, expires_at=expires_at, after=entry, most=asked)
            reply = await self._ask(query, EntriesReply)
            if len(reply.entries) > asked:
                raise _faulty(f"{len(reply.entries)} entries where {asked} were asked for")
            for each in reply.entries:
                if each.number <= entry:
                    raise _faulty(f"entry {each.number} after entry {entry}")
                entry = each.number
                entries.append((entry, _verdict(each.verdict)))
            if len(reply.entries) < asked:
                break
        return entries

    def _next(self) -> tuple[str, int]:
        """The name of one more query, and until when its reply is waited for."""
        self._asked += 1
        return f"{self._name}.{self._asked}", self._clock.now_ms() + round(self._ask_bounds.answer_seconds * 1000)

    async def _ask(self, query: Query, kind: type[R]) -> R:
        """The reply to a query; raises `Unavailable` without one that fits: no query has an effect."""
        bounds = self._ask_bounds
        if len(self._open) >= bounds.open_most:
            raise Unavailable(System.CORE, f"{len(self._open)} questions wait for the core's answers already")
        name, message = query.correlation_id, encode_query(query)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[name] = future
        try:
            async with asyncio.timeout(bounds.answer_seconds):
                while not future.done():
                    await self._send(name, message)
                    await asyncio.wait([future], timeout=bounds.again_seconds)
        except TimeoutError as error:
            raise Unavailable(System.CORE, f"no answer from the core in {bounds.answer_seconds:g} s") from error
        except OutcomeUnknown as error:
            raise Unavailable(error.system, error.message) from error
        finally:
            del self._open[name]
        return _expect(future.result(), kind)

    def _hear(self, messages: Iterable[bytes]) -> None:
        """Takes the core's replies to all processes; drops those that nobody here waits for."""
        for message in messages:
            try:
                reply = decode_reply(message)
            except UndecodableError as error:
                text = message[:1000].decode(errors="replace")
                _log.error("core_reply_undecodable", reason=str(error), message=text)
                continue
            future = self._open.get(reply.correlation_id)
            if future is not None and not future.done():
                future.set_result(reply)


def _expect(reply: Reply, kind: type[R]) -> R:
    if isinstance(reply, kind):
        return reply
    if isinstance(reply, UnavailableReply | RefusedReply):
        raise Unavailable(System.CORE, reply.reason)
    raise _faulty(f"a {type(reply).__name__} for a question of another kind")


def _verdict(fields: VerdictFields) -> Verdict:
    try:
        return read_verdict(fields)
    except UndecodableError as error:
        raise _faulty(str(error)) from error


def _faulty(what: str) -> Unavailable:
    _log.error("core_reply_faulty", what=what)
    return Unavailable(System.CORE, f"the core answered wrongly: {what}")
