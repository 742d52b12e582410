"""A member of a consumer group, on a thread of its own, that commits only what is done.

The thread polls, decodes, and hands whole batches to the event loop. It stops receiving while more is outstanding than
the bound, and it goes on polling then, so that the group does not take the partitions away. What cannot be decoded goes
to the topic of dead letters with the reason; its partition goes on, but its offset is committed only when the dead
letter is confirmed. With a `PrefixOwnership` it receives nothing before the topic is known to be its owner's.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from msgspec import Struct

from internal_transfer.adapters.kafka.connection import REFUSED, ClientLog, KafkaConnection
from internal_transfer.adapters.kafka.prefix_ownership import OWNED_ON, PrefixOwnership
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.progress import Place, Progress
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.wire.core_messages import UndecodableError

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class ConsumerBounds(Struct, frozen=True, kw_only=True):
    """How much is taken from Kafka at once, how much may be outstanding, and how often progress is committed.

    `retry_seconds` lie between attempts to do what failed; every `figures_seconds` we look whether brokers are there.
    """

    batch_most: int = 500
    outstanding_most: int = 5_000
    poll_seconds: float = 0.05
    commit_seconds: float = 0.1
    retry_seconds: float = 0.5
    figures_seconds: float = 1.0
    close_seconds: float = 10.0


DEFAULT_BOUNDS = ConsumerBounds()


class _Broker(Struct, frozen=True):
    """What the client's figures say about a broker; the addresses to begin with have negative numbers."""

    nodeid: int
    state: str


class _Figures(Struct, frozen=True):
    """The part of the client's figures that is read."""

    brokers: dict[str, _Broker]


_figures_decoder = msgspec.json.Decoder(_Figures)


class Received(NamedTuple, Generic[T]):
    """A decoded message, where it came from, and its headers."""

    item: T
    place: Place
    headers: list[tuple[str, str | bytes | None]]


class GroupConsumer(Generic[T]):
    """Receives one topic as a member of a group.

    `deliver` and `revoke` are called in the event loop, in the order in which things happened: messages, and the
    (generation, partition) that are somebody else's now. `decode` raises `UndecodableError`. `on_poison` is told the
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
        self._dead_letters = dead_letters
        self._producer = producer
        self._decode = decode
        self._deliver = deliver
        self._revoke = revoke
        self._clock = clock
        self._bounds = bounds
        self._on_poison = on_poison
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._abandoning = False
        self._guard = threading.Lock()
        self._progress: dict[int, Progress] = {}
        self._generation = 0
        self._paused = False
        self._assignment_changed = False
        """New partitions are not paused: what was decided has to be decided anew for all."""
        self._broken = False
        self._failure: str | None = None
        self._up = False
        self._unburied: deque[tuple[Outgoing, Place]] = deque()
        self._bury_at = 0.0
        self._received: list[Received[T]] = []
        self._ownership: PrefixOwnership | None = None
        self._admitted = False
        self._admit_at = 0.0

    @property
    def admitted(self) -> bool:
        """Tells whether the ownership that this was started with holds."""
        return self._admitted

    @property
    def failure(self) -> str | None:
        """What keeps messages from coming, as far as the client knows."""
        if not self._up:
            return f"no broker at {self._connection.bootstrap} can be reached"
        return self._failure

    @property
    def partitions(self) -> int:
        """How many partitions are ours now."""
        return len(self._progress)

    @property
    def outstanding(self) -> int:
        """How many messages were received and are not done."""
        with self._guard:
            return sum(progress.outstanding for progress in self._progress.values())

    def start(self, ownership: PrefixOwnership | None = None) -> None:
        """Joins the group in the background; raises `StartRefusedError` for TLS files that cannot be read.

        With an `ownership`, messages come only while it holds; where somebody else owns the topic, this
        member leaves the group and tells the ownership.
        """
        assert self._thread is None, "started already"
        self._ownership = ownership
        # Whoever gets no partition has to look as well.
        self._assignment_changed = ownership is not None
        self._loop = asyncio.get_running_loop()
        consumer = self._make()
        self._thread = threading.Thread(target=self._work, args=(consumer,), name=f"kafka-{self._topic}", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Commits what is done and leaves the group, so that others take over at once."""
        if self._thread is not None:
            self._closing.set()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, self._bounds.close_seconds)
            self._thread = None

    async def abandon(self) -> None:
        """Leaves without committing anything more, as a crash would."""
        self._abandoning = True
        await self.close()

    def finish(self, places: Iterable[Place]) -> None:
        """Says that the work on these messages is done; what is not ours any more is ignored. Does not wait."""
        with self._guard:
            for generation, partition, offset in places:
                progress = self._progress.get(partition)
                if progress is not None and progress.generation == generation:
                    progress.finish(offset)

    def _make(self) -> Consumer:
        settings: dict[str, Any] = self._connection.client_settings() | {
            "group.id": self._group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # What was never committed by this group has not been worked on.
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
                    self._commit(consumer, self._due(), wait=False)
                    committed_at = now
                self._regulate(consumer)
                self._bury()
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
            # They are counted as outstanding: where they went nowhere, their partition would stand still.
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
        with self._guard:
            progress = self._progress.get(partition)
            if progress is None:
                return  # It was just taken away; whoever has it now receives this message.
            progress.receive(offset)
        place = Place(progress.generation, partition, offset)
        value = message.value()
        headers: Any = message.headers() or []
        try:
            self._received.append(Received(self._decode(value or b""), place, headers))
        except UndecodableError as poison:
            reason = str(poison)
            _log.error("kafka_poison", topic=self._topic, partition=partition, offset=offset, reason=reason)
            self._on_poison(reason)
            letter = Outgoing(
                self._dead_letters,
                message.key() or b"",
                value or b"",
                [
                    *headers,
                    ("dead-letter-reason", reason.encode()),
                    ("dead-letter-topic", self._topic.encode()),
                    ("dead-letter-partition", str(partition).encode()),
                    ("dead-letter-offset", str(offset).encode()),
                ],
            )
            self._unburied.append((letter, place))

    def _bury(self) -> None:
        """Sends dead letters; one that is not confirmed comes back to the queue, and all wait a little then."""
        if not self._unburied or self._clock.monotonic() < self._bury_at:
            return
        for _ in range(len(self._unburied)):
            letter, place = self._unburied.popleft()

            def report(
                error: KafkaError | None, _message: object, *, letter: Outgoing = letter, place: Place = place
            ) -> None:
                if error is None:
                    self.finish([place])
                else:
                    _log.error("kafka_dead_letter_not_written", topic=letter.topic, error=error.str())
                    self._bury_at = self._clock.monotonic() + self._bounds.retry_seconds
                    self._unburied.append((letter, place))

            if not self._producer.send_and_report(letter, report):
                self._unburied.append((letter, place))

    def _regulate(self, consumer: Consumer) -> None:
        """Stops receiving above the bound, and goes on below half of it."""
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
        """Whether what is assigned may be received; an ownership is checked from time to time until it holds."""
        if self._ownership is None:
            return True
        if self._clock.monotonic() < self._admit_at:
            return False
        self._admit_at = self._clock.monotonic() + self._bounds.retry_seconds
        self._admitted = self._ownership.settle(consumer, self._topic, may_claim=OWNED_ON in self._progress)
        self._failure = None  # What kept the ownership from being looked at is over.
        return self._admitted

    def _due(self, partitions: Iterable[int] | None = None) -> list[TopicPartition]:
        """The offsets that are done and not committed yet, of these partitions or of all."""
        due = []
        owner = "" if self._ownership is None else self._ownership.owner
        with self._guard:
            for partition, progress in self._progress.items():
                if partitions is not None and partition not in partitions:
                    continue
                if progress.position is not None and progress.position != progress.committed:
                    progress.committed = progress.position
                    due.append(TopicPartition(self._topic, partition, progress.position, owner))
        return due

    def _commit(self, consumer: Consumer, due: list[TopicPartition], *, wait: bool) -> None:
        """Commits; what fails is committed with what comes later, or else received again."""
        if not due or self._abandoning:
            return
        try:
            if wait:
                consumer.commit(offsets=due, asynchronous=False)
            else:
                consumer.commit(offsets=due, asynchronous=True)
        except KafkaException as error:
            self._committed(error.args[0], due)

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        if error is None:
            return
        _log.warning("kafka_commit_failed", topic=self._topic, error=error.str())
        with self._guard:
            for each in partitions:
                progress = self._progress.get(each.partition)
                if progress is not None:
                    progress.committed = None

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._ownership is not None:
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)
            self._admit_at = 0.0
        with self._guard:
            self._generation += 1
            for each in partitions:
                self._progress[each.partition] = Progress(self._generation)
        self._assignment_changed = True
        self._failure, self._up = None, True
        _log.info("kafka_assigned", topic=self._topic, partitions=[each.partition for each in partitions])

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(consumer, self._due([each.partition for each in partitions]), wait=True)
        self._lost(consumer, partitions)

    def _lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # What came before is told before, so that it is forgotten too.
        self._hand_over()
        gone = set()
        with self._guard:
            for each in partitions:
                progress = self._progress.pop(each.partition, None)
                if progress is not None:
                    gone.add((progress.generation, each.partition))
        _log.info("kafka_revoked", topic=self._topic, partitions=[each.partition for each in partitions])
        self._tell(self._revoke, frozenset(gone))

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = True
        if error.fatal() or error.code() in REFUSED:
            self._failure = error.str()

    def _figures(self, text: str) -> None:
        brokers = _figures_decoder.decode(text).brokers.values()
        up = any(broker.nodeid >= 0 and broker.state == "UP" for broker in brokers)
        if up is self._up:
            return
        self._up = up
        _log.info("kafka_reached" if up else "kafka_away", topic=self._topic)

    def _tell(self, listener: Callable[[Any], None], what: object) -> None:
        assert self._loop is not None, "the thread starts with a loop"
        try:
            self._loop.call_soon_threadsafe(listener, what)
        except RuntimeError:
            _log.warning("kafka_message_after_the_loop_ended", topic=self._topic)

    def _replace(self, consumer: Consumer) -> Consumer:
        """A new client in the place of one that a fatal error has ended; it receives what was not committed."""
        self._broken = False
        _log.error("kafka_consumer_replaced", topic=self._topic, error=self._failure)
        with self._guard:
            lost = [TopicPartition(self._topic, partition) for partition in self._progress]
        self._lost(consumer, lost)
        consumer.close()
        while not self._closing.is_set():
            try:
                return self._make()
            except StartRefusedError as error:
                self._failure = str(error)
                self._closing.wait(self._bounds.retry_seconds)
        return consumer

    def _leave(self, consumer: Consumer) -> None:
        # A broker that is away would keep a commit waiting; what it does not take is received again.
        self._commit(consumer, self._due(), wait=self.failure is None)
        consumer.close()
