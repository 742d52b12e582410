"""The reference core behind Kafka.

Orders are taken in batches, carried out, and on stable storage before their verdicts are sent; offsets are committed
when the verdicts are confirmed. Killed anywhere, the core receives what was not committed again and repeats the stored
first verdicts. A core is one database, so one prefix is served from one directory: that directory owns it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog
from msgspec.structs import replace

from internal_transfer.adapters.kafka.connection import KafkaConnection
from internal_transfer.adapters.kafka.consumer import DEFAULT_BOUNDS, ConsumerBounds, GroupConsumer, Received
from internal_transfer.adapters.kafka.headers import plain_headers
from internal_transfer.adapters.kafka.prefix_ownership import PrefixOwnership
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.adapters.kafka.verdicts import verdict_messages
from internal_transfer.domain.leg import Command
from internal_transfer.hosts.core.host import CoreHost, HostState, Phase
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, System
from internal_transfer.wire.core_messages import Query, decode_command, decode_query, encode_reply

_log = structlog.get_logger(__name__)

T = TypeVar("T")

GROUP = "core"
RETRY_SECONDS = 0.1


class _Inbox(Generic[T]):
    """What was received and not worked on yet; bounded by its consumer."""

    def __init__(self) -> None:
        self._waiting: deque[Received[T]] = deque()
        self._some = asyncio.Event()

    def add(self, received: Sequence[Received[T]]) -> None:
        self._waiting.extend(received)
        self._some.set()

    def forget(self, gone: frozenset[tuple[int, int]]) -> None:
        self._waiting = deque(
            each for each in self._waiting if (each.place.generation, each.place.partition) not in gone
        )

    async def take(self, most: int) -> list[Received[T]]:
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]


class KafkaCoreHost:
    """Serves the commands and queries of one prefix; `batch_most` orders share one commit."""

    def __init__(
        self,
        host: CoreHost,
        connection: KafkaConnection,
        topics: Topics,
        *,
        clock: Clock,
        bounds: ConsumerBounds = DEFAULT_BOUNDS,
        batch_most: int = 1_000,
    ) -> None:
        self._host = host
        self._connection = connection
        self._topics = topics
        self._clock = clock
        self._batch_most = batch_most
        self._group = f"{topics.prefix}.{GROUP}"
        self._refusal: StartRefusedError | None = None
        self._cluster = Cluster(connection, topics)
        self._producer = KafkaProducer(connection, system=System.BUS)
        self._orders: _Inbox[Command] = _Inbox()
        self._questions: _Inbox[Query] = _Inbox()
        self._commands = GroupConsumer(
            connection,
            topic=topics.commands,
            group=self._group,
            dead_letters=topics.dead_letters,
            producer=self._producer,
            decode=decode_command,
            deliver=self._orders.add,
            revoke=self._orders.forget,
            clock=clock,
            bounds=bounds,
        )
        self._queries = GroupConsumer(
            connection,
            topic=topics.queries,
            group=f"{topics.prefix}.{GROUP}.queries",
            dead_letters=topics.dead_letters,
            producer=self._producer,
            decode=decode_query,
            deliver=self._questions.add,
            revoke=self._questions.forget,
            clock=clock,
            bounds=bounds,
        )

    def state(self) -> HostState:
        """The host's state, and what this transport adds to it."""
        state = self._host.state()
        if state.reason is None:
            if self._producer.away is not None:
                return replace(state, reason=f"Kafka cannot be reached: {self._producer.away}")
            if self._commands.failure is not None:
                return replace(state, reason=f"no orders come: {self._commands.failure}")
            if not self._commands.partitions:
                return replace(state, reason="no partition of the commands is ours yet")
            if not self._commands.admitted:
                return replace(state, reason="it is not known yet whether another core works on this prefix")
        return state

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop.

        Raises `Unavailable` where the cluster cannot be reached at the start, and `StartRefusedError` where it cannot
        be used, or where a core with another database works on this prefix.
        """

        def refuse(error: StartRefusedError) -> None:
            self._refusal = error
            stop.set()

        await self._cluster.require()
        ownership = PrefixOwnership(await self._host.name(), refuse)
        await asyncio.to_thread(ownership.look, self._connection, self._topics.commands, self._group)
        self._producer.start()
        self._commands.start(ownership)
        self._queries.start()
        self._host.phase = Phase.RUNNING
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(self._carry_out_all()), tasks.create_task(self._answer_all())]
                await stop.wait()
                # Whatever this cuts off is received again, and answered with the stored verdicts.
                for task in working:
                    task.cancel()
        finally:
            self._host.phase = Phase.STOPPING
            await self._queries.close()
            await self._commands.close()
            await self._producer.close()
        if self._refusal is not None:
            raise self._refusal

    async def _carry_out_all(self) -> None:
        while True:
            batch = await self._orders.take(self._batch_most)
            while (failure := await self._carry_out(batch)) is not None:
                _log.warning("core_orders_wait", orders=len(batch), error=str(failure))
                await self._clock.sleep(RETRY_SECONDS)
            self._commands.finish(received.place for received in batch)

    async def _carry_out(self, batch: Sequence[Received[Command]]) -> OperatingFailureError | None:
        try:
            verdicts = await self._host.carry_out([received.item for received in batch])
            await self._producer.send(verdict_messages(self._topics, verdicts))
        except OperatingFailureError as error:
            return error
        return None

    async def _answer_all(self) -> None:
        while True:
            batch = await self._questions.take(self._batch_most)
            while not self._commands.admitted:
                # A core beside the right one would answer that it has seen nothing.
                await self._clock.sleep(RETRY_SECONDS)
            replies = [
                Outgoing(self._topics.replies, reply.correlation_id.encode(), encode_reply(reply), plain_headers())
                for received in batch
                if (reply := await self._host.answer(received.item)) is not None
            ]
            try:
                await self._producer.send(replies)
            except OperatingFailureError as error:
                # Who asked gives up after its deadline and asks again; an old answer helps nobody.
                _log.warning("core_replies_lost", replies=len(replies), error=str(error))
            self._queries.finish(received.place for received in batch)
