"""The reference core behind Kafka.

Commands are carried out in batches, whose verdicts are on stable storage before they are sent; offsets are committed
when Kafka has confirmed the verdicts. A core that was killed receives again what was not committed, and repeats the
stored first verdicts. A core is one database, so the directory of that database owns the prefix.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog
from msgspec.structs import replace

from internal_transfer.adapters.kafka.consumer import DEFAULT_BOUNDS, ConsumerBounds, GroupConsumer, Received
from internal_transfer.adapters.kafka.messages import about_query, verdict_messages
from internal_transfer.adapters.kafka.prefix_ownership import PrefixOwnership
from internal_transfer.adapters.kafka.producer import KafkaProducer
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.domain.leg import Command
from internal_transfer.hosts.core.host import CoreHost, HostState
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, System
from internal_transfer.wire.core_messages import Query, decode_command, decode_query, encode_reply

_log = structlog.get_logger(__name__)

T = TypeVar("T")

GROUP = "core"
RETRY_SECONDS = 0.1


class _Inbox(Generic[T]):
    """Messages that were received and not worked on yet; their number is bounded by the consumer."""

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
    """Serves the commands and queries of one prefix; at most `batch_most` commands share a commit."""

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
        self._commands: _Inbox[Command] = _Inbox()
        self._queries: _Inbox[Query] = _Inbox()

        def consumer(topic: str, group: str, decode: Callable[[bytes], T], inbox: _Inbox[T]) -> GroupConsumer[T]:
            return GroupConsumer(
                connection,
                topic=topic,
                group=group,
                dead_letters=topics.dead_letters,
                producer=self._producer,
                decode=decode,
                deliver=inbox.add,
                revoke=inbox.forget,
                clock=clock,
                bounds=bounds,
            )

        self._command_consumer = consumer(topics.commands, self._group, decode_command, self._commands)
        self._query_consumer = consumer(topics.queries, f"{self._group}.queries", decode_query, self._queries)

    def state(self) -> HostState:
        """The host's state, with what keeps this transport from working."""
        state = self._host.state()
        if state.reason is None:
            if self._producer.away is not None:
                return replace(state, reason=f"Kafka cannot be reached: {self._producer.away}")
            if self._command_consumer.failure is not None:
                return replace(state, reason=f"no commands come: {self._command_consumer.failure}")
            if not self._command_consumer.partitions:
                return replace(state, reason="this core has no partition of the commands yet")
            if not self._command_consumer.admitted:
                return replace(state, reason="it is not known yet whether another core works on this prefix")
        return state

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop.

        Raises `Unavailable` where the cluster cannot be reached at the start, and `StartRefusedError` where it cannot
        be used or a core with another database owns this prefix.
        """

        def refuse(error: StartRefusedError) -> None:
            self._refusal = error
            stop.set()

        await self._cluster.require()
        ownership = PrefixOwnership(await self._host.name(), refuse)
        await asyncio.to_thread(ownership.look, self._connection, self._topics.commands, self._group)
        self._producer.start()
        self._command_consumer.start(ownership)
        self._query_consumer.start()
        try:
            await self._host.serve(stop, self._carry_out_all(), self._answer_all())
        finally:
            await self._query_consumer.close()
            await self._command_consumer.close()
            await self._producer.close()
        if self._refusal is not None:
            raise self._refusal

    async def _carry_out_all(self) -> None:
        while True:
            batch = await self._commands.take(self._batch_most)
            while (failure := await self._carry_out(batch)) is not None:
                _log.warning("core_orders_wait", orders=len(batch), error=str(failure))
                await self._clock.sleep(RETRY_SECONDS)
            self._command_consumer.finish(received.place for received in batch)

    async def _carry_out(self, batch: Sequence[Received[Command]]) -> OperatingFailureError | None:
        try:
            verdicts = await self._host.carry_out([received.item for received in batch])
            await self._producer.send(verdict_messages(self._topics, verdicts))
        except OperatingFailureError as error:
            return error
        return None

    async def _answer_all(self) -> None:
        while True:
            batch = await self._queries.take(self._batch_most)
            while not self._command_consumer.admitted:
                # A core that does not own the prefix would answer that it has seen nothing.
                await self._clock.sleep(RETRY_SECONDS)
            replies = [
                about_query(self._topics.replies, reply.correlation_id, encode_reply(reply))
                for received in batch
                if (reply := await self._host.answer(received.item)) is not None
            ]
            try:
                await self._producer.send(replies)
            except OperatingFailureError as error:
                # The service asks again after its deadline; an old reply helps nobody.
                _log.warning("core_replies_lost", replies=len(replies), error=str(error))
            self._query_consumer.finish(received.place for received in batch)
