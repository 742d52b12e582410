"""A member of a consumer group, on a thread of its own, which commits only the offsets of finished work.

The thread polls, decodes, and hands whole batches to the event loop. Above the bound of outstanding messages it stops
receiving but goes on polling, so that the group does not take its partitions away. What cannot be decoded goes to the
dead letters; its partition goes on, but its offset is committed only when the dead letter is confirmed. With a
`PrefixOwnership` the thread receives nothing before the topic is known to be its owner's.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from msgspec import Struct

from internal_transfer.adapters.kafka.dead_letters import DeadLetters
from internal_transfer.adapters.kafka.prefix_ownership import OWNED_ON, PrefixOwnership
from internal_transfer.adapters.kafka.producer import KafkaProducer
from internal_transfer.adapters.kafka.progress import Assignment, Place
from internal_transfer.adapters.kafka.settings import (
    REFUSED,
    ClientLog,
    KafkaConnection,
    call_in_loop,
    reaches_a_broker,
)
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.wire.core_messages import UndecodableError

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class ConsumerBounds(Struct, frozen=True, kw_only=True):
    """How much is taken from Kafka at once, how much may be outstanding, and how often progress is committed.

    What failed is tried again after `retry_seconds`. Every `figures_seconds` the client says which brokers it reaches.
    """

    batch_most: int = 500
    outstanding_most: int = 5_000
    poll_seconds: float = 0.05
    commit_seconds: float = 0.1
    retry_seconds: float = 0.5
    figures_seconds: float = 1.0
    close_seconds: float = 10.0


DEFAULT_BOUNDS = ConsumerBounds()


class Received(NamedTuple, Generic[T]):
    """A decoded message and where it came from."""

    item: T
    place: Place


class GroupConsumer(Generic[T]):
    """Receives one topic as a member of a group.

    `deliver` and `revoke` are called in the event loop, in the order of events: with messages, and with the
    (generation, partition) that are now another member's. `decode` raises `UndecodableError`. `on_poison` is told the
    reason, in the consumer's thread.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topic: str,
        group: str,
        dead_letters: str,
        producer: KafkaProducer,
        decode: Callable[[bytes], T],
        deliver: Callable[[Sequence[Received[T]]], None],
        revoke: Callable[[frozenset[tuple[int, int]]], None],
        clock: Clock,
        bounds: ConsumerBounds = DEFAULT_BOUNDS,
        on_poison: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._group = group
        self._decode = decode
        self._deliver = deliver
        self._revoke = revoke
        self._clock = clock
        self._bounds = bounds
        self._on_poison = on_poison
        self._assignment = Assignment()
        self._dead_letters = DeadLetters(
            producer,
            dead_letters,
            written=lambda place: self._assignment.finish([place]),
            clock=clock,
            retry_seconds=bounds.retry_seconds,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._abandoning = False
        self._paused = False
        self._assignment_changed = False
        """Set by a new assignment: its partitions are not paused, so the pauses have to be decided again."""
        self._broken = False
        self._failure: str | None = None
        self._up = False
        self._received: list[Received[T]] = []
        self._ownership: PrefixOwnership | None = None
        self._admitted = False
        self._admit_at = 0.0

    @property
    def admitted(self) -> bool:
        """Tells whether the topic is known to belong to the owner that this consumer was started with."""
        return self._admitted

    @property
    def failure(self) -> str | None:
        """Why no messages come, as far as the client knows."""
        if not self._up:
            return f"no broker at {self._connection.bootstrap} can be reached"
        return self._failure

    @property
    def partitions(self) -> int:
        """How many partitions are ours now."""
        return len(self._assignment.partitions)

    @property
    def outstanding(self) -> int:
        """How many messages were received and are not done."""
        return self._assignment.outstanding

    def start(self, ownership: PrefixOwnership | None = None) -> None:
        """Joins the group in the background; raises `StartRefusedError` for TLS files that cannot be read.

        With an `ownership`, messages come only while it holds; where another owner has the topic, this member leaves
        the group and tells the ownership.
        """
        assert self._thread is None, "started already"
        self._ownership = ownership
        # A member that gets no partition has to check the ownership as well.
        self._assignment_changed = ownership is not None
        self._loop = asyncio.get_running_loop()
        consumer = self._make()
        self._thread = threading.Thread(target=self._work, args=(consumer,), name=f"kafka-{self._topic}", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Commits what is done and leaves the group, so that other members take over at once."""
        if self._thread is not None:
            self._closing.set()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, self._bounds.close_seconds)
            self._thread = None

    async def abandon(self) -> None:
        """Leaves without committing anything more, as a crash would."""
        self._abandoning = True
        await self.close()

    def finish(self, places: Iterable[Place]) -> None:
        """Says that the work on these messages is done; ignores partitions that are not ours any more. Never waits."""
        self._assignment.finish(places)

    def _make(self) -> Consumer:
        settings: dict[str, Any] = self._connection.client_settings() | {
            "group.id": self._group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # What this group has never committed has not been worked on.
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": round(self._connection.session_seconds * 1000),
            "heartbeat.interval.ms": round(self._connection.session_seconds * 1000 / 4),
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
            "error_cb": self._heard,
            # Only the client's figures tell whether its brokers are there.
            "statistics.interval.ms": round(self._bounds.figures_seconds * 1000),
            "stats_cb": self._figures,
            "on_commit": self._committed,
        }
        consumer = Consumer(settings, logger=ClientLog())
        consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return consumer

    # What follows runs in the consumer's thread.

    def _work(self, consumer: Consumer) -> None:
        committed_at = self._clock.monotonic()
        while not self._closing.is_set():
            try:
                self._receive(consumer)
                now = self._clock.monotonic()
                if now - committed_at >= self._bounds.commit_seconds:
                    self._commit(consumer, self._assignment.partitions, wait=False)
                    committed_at = now
                self._regulate(consumer)
                self._dead_letters.send()
            except KafkaException as error:
                self._failure = str(error)
                _log.warning("kafka_consumer_failed", topic=self._topic, error=str(error))
                self._closing.wait(self._bounds.poll_seconds)
            except StartRefusedError as error:
                assert self._ownership is not None, "only an ownership is refused here"
                self._failure = str(error)
                _log.error("kafka_claim_refused", topic=self._topic, error=str(error))
                self._tell(self._ownership.refused, error)
                break
            except Exception as error:  # noqa: BLE001 - the thread's outermost loop: a bug must neither end it nor hide.
                self._failure = repr(error)
                self._broken = True
                _log.error("kafka_consumer_broke", topic=self._topic, exc_info=error)
                self._closing.wait(self._bounds.retry_seconds)
            if self._broken:
                consumer = self._replace(consumer)
        self._leave(consumer)

    def _receive(self, consumer: Consumer) -> None:
        try:
            # One by one, since a call for many could hand out messages from before and after a rebalance together.
            message = consumer.poll(self._bounds.poll_seconds)
            while message is not None:
                self._take(message)
                message = consumer.poll(0) if len(self._received) < self._bounds.batch_most else None
        finally:
            # They count as outstanding: if they were not handed over, their partition would stand still.
            self._hand_over()

    def _hand_over(self) -> None:
        if self._received:
            self._failure = None
            received, self._received = self._received, []
            self._tell(self._deliver, received)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._failure = error.str()
            _log.warning("kafka_consumer_told", topic=self._topic, error=error.str())
            return
        partition, offset = message.partition(), message.offset()
        assert partition is not None, "a message has a partition"
        assert offset is not None, "a message has an offset"
        place = self._assignment.receive(partition, offset)
        if place is None:
            return
        try:
            self._received.append(Received(self._decode(message.value() or b""), place))
        except UndecodableError as poison:
            reason = str(poison)
            _log.error("kafka_poison", topic=self._topic, partition=partition, offset=offset, reason=reason)
            self._on_poison(reason)
            self._dead_letters.add(message, place, reason)

    def _regulate(self, consumer: Consumer) -> None:
        """Stops receiving at the bound, and goes on at half of it."""
        outstanding = self.outstanding
        if self._assignment_changed and self._admit(consumer):
            consumer.resume(consumer.assignment())
            self._assignment_changed = self._paused = False
        if not self._paused and outstanding >= self._bounds.outstanding_most:
            consumer.pause(consumer.assignment())
            self._paused = True
        elif self._paused and not self._assignment_changed and outstanding <= self._bounds.outstanding_most // 2:
            consumer.resume(consumer.assignment())
            self._paused = False

    def _admit(self, consumer: Consumer) -> bool:
        """Tells whether to receive what is assigned; checks an ownership every `retry_seconds` until it holds."""
        if self._ownership is None:
            return True
        if self._clock.monotonic() < self._admit_at:
            return False
        self._admit_at = self._clock.monotonic() + self._bounds.retry_seconds
        self._admitted = self._ownership.settle(
            consumer, self._topic, may_claim=OWNED_ON in self._assignment.partitions
        )
        self._failure = None  # The ownership could be checked, so an earlier failure to do so is over.
        return self._admitted

    def _commit(self, consumer: Consumer, partitions: Iterable[int], *, wait: bool) -> None:
        """Commits what is done; what fails is committed with what comes later, or else received again."""
        if self._abandoning:
            return
        owner = "" if self._ownership is None else self._ownership.owner
        due = [
            TopicPartition(self._topic, partition, offset, owner)
            for partition, offset in self._assignment.take_due(partitions)
        ]
        if not due:
            return
        try:
            # The library's types know the argument by its values only.
            if wait:
                consumer.commit(offsets=due, asynchronous=False)
            else:
                consumer.commit(offsets=due, asynchronous=True)
        except KafkaException as error:
            self._committed(error.args[0], due)

    def _committed(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        if error is not None:
            _log.warning("kafka_commit_failed", topic=self._topic, error=error.str())
            self._assignment.commit_failed(_numbers(places))

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if self._ownership is not None:
            consumer.incremental_assign(places)
            consumer.pause(places)
            self._admit_at = 0.0
        self._assignment.add(_numbers(places))
        self._assignment_changed = True
        self._failure, self._up = None, True
        _log.info("kafka_assigned", topic=self._topic, partitions=_numbers(places))

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        self._commit(consumer, _numbers(places), wait=True)
        self._lost(consumer, places)

    def _lost(self, _consumer: Consumer, places: list[TopicPartition]) -> None:
        self._lose(_numbers(places))

    def _lose(self, partitions: list[int]) -> None:
        # Messages that came before are handed over before, so that they are forgotten too.
        self._hand_over()
        gone = self._assignment.remove(partitions)
        _log.info("kafka_revoked", topic=self._topic, partitions=partitions)
        self._tell(self._revoke, gone)

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = True
        if error.fatal() or error.code() in REFUSED:
            self._failure = error.str()

    def _figures(self, text: str) -> None:
        up = reaches_a_broker(text)
        if up is not self._up:
            self._up = up
            _log.info("kafka_reached" if up else "kafka_away", topic=self._topic)

    def _tell(self, listener: Callable[[Any], None], what: object) -> None:
        call_in_loop(self._loop, listener, what, topic=self._topic)

    def _replace(self, consumer: Consumer) -> Consumer:
        """Puts a new client in the place of one that a fatal error has ended; it receives what was not committed."""
        self._broken = False
        _log.error("kafka_consumer_replaced", topic=self._topic, error=self._failure)
        self._lose(self._assignment.partitions)
        consumer.close()
        while not self._closing.is_set():
            try:
                return self._make()
            except StartRefusedError as error:
                self._failure = str(error)
                self._closing.wait(self._bounds.retry_seconds)
        return consumer

    def _leave(self, consumer: Consumer) -> None:
        # The commit would wait for a broker that is away; what it does not take is received again.
        self._commit(consumer, self._assignment.partitions, wait=self.failure is None)
        consumer.close()


def _numbers(places: Iterable[TopicPartition]) -> list[int]:
    return [place.partition for place in places]
