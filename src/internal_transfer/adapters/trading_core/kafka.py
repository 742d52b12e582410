"""Trading cores behind Kafka: orders go to a topic and their verdicts come over the event bus; questions are answered.

Every question carries a name that its answer repeats; a process reads the answers from the end of their topic and keeps
its own. Nothing depends on an answer's arrival: whoever does not get one asks again.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import TypeVar

import structlog

from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.kafka.connection import KafkaConnection
from internal_transfer.kafka.headers import plain_headers, transfer_headers
from internal_transfer.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.kafka.tail import TailReader
from internal_transfer.kafka.topics import Check, Cluster, Topics
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.trading_core import CoreBalance
from internal_transfer.wire.core_messages import (
    ENTRIES_PER_QUERY_MAX,
    TRANSFERS_PER_QUERY_MAX,
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
    VerdictFields,
    VerdictsQuery,
    VerdictsReply,
    decode_reply,
    encode_command,
    encode_query,
    read_balances,
    read_verdict,
)

_log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Reply)


class KafkaTradingCore:
    """Implements `TradingCore`; `query_seconds` is how long an answer is waited for, `queries_most` how many may be.

    `tell` answers None for every order. Its orders are given up by the client after the connection's
    `delivery_seconds`, so none of them is sent later than that.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        clock: Clock,
        query_seconds: float = 5.0,
        queries_most: int = 1_000,
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._query_seconds = query_seconds
        self._queries_most = queries_most
        self._name = f"{clock.now_ms():x}-{os.getpid()}-{int(clock.jitter() * 2**48):x}"
        self._asked = 0
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._cluster = Cluster(connection, topics)
        self._producer = KafkaProducer(connection, system=System.CORE)
        self._replies = TailReader(
            connection, topic=topics.replies, own_prefix=f"{self._name}.".encode(), deliver=self._hear
        )

    @property
    def failure(self) -> str | None:
        """Why orders cannot be sent, as far as is known; for readiness."""
        return self._producer.away

    async def start(self) -> None:
        """Connects.

        Raises `Unavailable` where the cluster cannot be reached, and `StartRefusedError` where it cannot be used.
        """
        await self._cluster.require()
        await self._replies.start()
        self._producer.start()

    async def close(self) -> None:
        """Sends what is under way and disconnects."""
        await self._producer.close()
        await self._replies.close()

    async def check(self) -> list[Check]:
        """Lines for `doctor`: the cluster's, and whether a core answers."""
        lines = await self._cluster.check()
        try:
            await self.entries_after(0, 1)
        except Unavailable as error:
            return [*lines, ("trading core", False, error.message)]
        return [*lines, ("trading core", True, "it answers")]

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends orders and returns when all replicas have them; see the port."""
        await self._producer.send(
            [
                Outgoing(
                    self._topics.commands,
                    str(command.transfer_id).encode(),
                    encode_command(command),
                    transfer_headers(command.transfer_id),
                )
                for command in commands
            ]
        )
        return [None] * len(commands)

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        """All stored verdicts of each transfer; raises `Unavailable` while the core does not answer."""
        found: list[list[Verdict]] = []
        for start in range(0, len(transfer_ids), TRANSFERS_PER_QUERY_MAX):
            asked = transfer_ids[start : start + TRANSFERS_PER_QUERY_MAX]
            name, expires_at = self._next_query()
            query = VerdictsQuery(
                correlation_id=name, expires_at=expires_at, transfer_ids=tuple(str(each) for each in asked)
            )
            reply = await self._read(query, VerdictsReply)
            if len(reply.verdicts) != len(asked):
                raise _faulty(f"{len(reply.verdicts)} lists of verdicts for {len(asked)} transfers")
            for transfer_id, given in zip(asked, reply.verdicts, strict=True):
                verdicts = [_verdict(each) for each in given]
                if any(verdict.transfer_id != transfer_id for verdict in verdicts):
                    raise _faulty(f"verdicts about another transfer than {transfer_id}")
                found.append(verdicts)
        return found

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        """The balances of one owner; raises `Unavailable` while the core does not answer."""
        name, expires_at = self._next_query()
        reply = await self._read(BalancesQuery(correlation_id=name, expires_at=expires_at, owner=owner), BalancesReply)
        balances = read_balances(reply.balances)
        if any(balance.account.owner != owner for balance in balances):
            raise _faulty(f"balances of another owner than {owner}")
        return balances

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        """What moved balances, by rising number; raises `Unavailable` while the core does not answer."""
        entries: list[tuple[int, Verdict]] = []
        while len(entries) < most:
            asked = min(most - len(entries), ENTRIES_PER_QUERY_MAX)
            name, expires_at = self._next_query()
            query = EntriesQuery(correlation_id=name, expires_at=expires_at, after=entry, most=asked)
            reply = await self._read(query, EntriesReply)
            for each in reply.entries:
                if each.number <= entry:
                    raise _faulty(f"entry {each.number} after entry {entry}")
                entry = each.number
                entries.append((entry, _verdict(each.verdict)))
            if len(reply.entries) < asked:
                break
        return entries

    async def set_mode(self, mode: str) -> None:
        """Sets how a core of a demonstration behaves (`CoreMode`).

        Raises `Unavailable` where the core refuses or nothing was sent, `OutcomeUnknown` where it did not answer.
        """
        name, expires_at = self._next_query()
        reply = await self._ask(SetModeQuery(correlation_id=name, expires_at=expires_at, mode=mode))
        _expect(reply, ModeReply)

    def _next_query(self) -> tuple[str, int]:
        """The name of one more query, and until when its answer is waited for."""
        self._asked += 1
        return f"{self._name}.{self._asked}", self._clock.now_ms() + round(self._query_seconds * 1000)

    async def _read(self, query: Query, kind: type[R]) -> R:
        """The answer to a query that has no effect: where it is not known, nothing was done all the same."""
        try:
            reply = await self._ask(query)
        except OutcomeUnknown as error:
            raise Unavailable(error.system, error.message) from error
        return _expect(reply, kind)

    async def _ask(self, query: Query) -> Reply:
        if len(self._waiting) >= self._queries_most:
            raise Unavailable(System.CORE, f"{len(self._waiting)} questions wait for the core's answers already")
        name = query.correlation_id
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        try:
            async with asyncio.timeout(self._query_seconds):
                await self._producer.send(
                    [Outgoing(self._topics.queries, name.encode(), encode_query(query), plain_headers())]
                )
                return await future
        except TimeoutError as error:
            raise OutcomeUnknown(System.CORE, f"no answer from the core in {self._query_seconds:g} s") from error
        finally:
            del self._waiting[name]

    def _hear(self, values: Sequence[bytes]) -> None:
        for value in values:
            try:
                reply = decode_reply(value)
            except UndecodableError as error:
                _log.error("core_reply_undecodable", reason=str(error))
                continue
            future = self._waiting.get(reply.correlation_id)
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
