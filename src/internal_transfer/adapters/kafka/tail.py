"""Reads one topic from its end, without a group: for replies that matter only to the process that asked.

Every process reads all partitions and keeps the messages whose key begins with its own name. Partitions that are added
meanwhile are read from their beginning, so that nothing in them is missed.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from internal_transfer.adapters.kafka.settings import REFUSED, ClientLog, KafkaConnection, call_in_loop
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
RETRY_SECONDS = 0.2
BATCH_MOST = 500
LOOK_SECONDS = 5.0
"""How often the reader looks for new partitions; writers learn of them within half a minute."""

LOOK_CALL_SECONDS = 1.0
CALL_SECONDS = 10.0


class TailReader:
    """Hands the values of messages whose key begins with `own_prefix` to `deliver`, in the event loop.

    `own_prefix` must differ between processes. Messages that are written while this reader does not run are missed.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topic: str,
        own_prefix: bytes,
        deliver: Callable[[Sequence[bytes]], None],
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._own_prefix = own_prefix
        self._deliver = deliver
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._broken = False

    async def start(self) -> None:
        """Starts the thread; misses nothing that is written after it has returned.

        Raises `Unavailable` where the cluster or the topic cannot be reached, and `StartRefusedError` for TLS files
        that cannot be read.
        """
        assert self._thread is None, "started already"
        self._loop = asyncio.get_running_loop()
        consumer = await asyncio.to_thread(self._at_the_end)
        self._thread = threading.Thread(target=self._work, args=(consumer,), name=f"kafka-{self._topic}", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._closing.set()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, CALL_SECONDS)
            self._thread = None

    def _at_the_end(self) -> Consumer:
        settings: dict[str, Any] = self._connection.client_settings() | {
            "group.id": f"{self._topic}.nobody",  # Never joined, but the client requires a name.
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "fetch.wait.max.ms": 100,
            "error_cb": self._heard,
        }
        consumer = Consumer(settings, logger=ClientLog())
        for left in reversed(range(round(CALL_SECONDS / RETRY_SECONDS))):
            try:
                consumer.assign(self._ends(consumer))
                break
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                # A partition whose leader is changing has a leader again in a moment.
                if left and reason.code() not in REFUSED and not self._closing.wait(RETRY_SECONDS):
                    continue
                consumer.close()
                raise Unavailable(System.CORE, f"Kafka, topic {self._topic}: {reason.str()}") from error
        return consumer

    def _ends(self, consumer: Consumer) -> list[TopicPartition]:
        """The end of every partition as it is now; looked up later, it might lie behind a reply to this process."""
        places = []
        for partition in self._partitions(consumer, CALL_SECONDS):
            place = TopicPartition(self._topic, partition)
            place.offset = consumer.get_watermark_offsets(place, timeout=CALL_SECONDS)[1]
            places.append(place)
        return places

    def _partitions(self, consumer: Consumer, seconds: float) -> list[int]:
        known = consumer.list_topics(self._topic, timeout=seconds).topics[self._topic]
        if known.error is not None:
            raise KafkaException(known.error)
        return list(known.partitions)

    # What follows runs in the reader's thread.

    def _work(self, consumer: Consumer) -> None:
        looked_at = self._clock.monotonic()
        while not self._closing.is_set():
            try:
                self._receive(consumer)
                if self._clock.monotonic() - looked_at >= LOOK_SECONDS:
                    looked_at = self._clock.monotonic()
                    self._take_new_partitions(consumer)
            except KafkaException as error:
                _log.warning("kafka_reader_failed", topic=self._topic, error=str(error))
                self._closing.wait(POLL_SECONDS)
            if self._broken:
                consumer = self._replace(consumer)
        consumer.close()

    def _take_new_partitions(self, consumer: Consumer) -> None:
        try:
            known = self._partitions(consumer, LOOK_CALL_SECONDS)
        except KafkaException as error:
            # The log says elsewhere, once, that brokers are away; this would repeat it until they are back.
            _log.debug("kafka_partitions_not_read", topic=self._topic, error=str(error))
            return
        read = {place.partition for place in consumer.assignment()}
        added = [TopicPartition(self._topic, each, OFFSET_BEGINNING) for each in known if each not in read]
        if added:
            consumer.incremental_assign(added)
            _log.info("kafka_partitions_added", topic=self._topic, partitions=[each.partition for each in added])

    def _receive(self, consumer: Consumer) -> None:
        mine: list[bytes] = []
        try:
            message = consumer.poll(POLL_SECONDS)
            while message is not None:
                error, key, value = message.error(), message.key(), message.value()
                if error is not None:
                    _log.warning("kafka_reader_told", topic=self._topic, error=error.str())
                elif key is not None and value is not None and key.startswith(self._own_prefix):
                    mine.append(value)
                message = consumer.poll(0) if len(mine) < BATCH_MOST else None
        finally:
            if mine:
                call_in_loop(self._loop, self._deliver, mine, topic=self._topic)

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = True
        if error.fatal() or error.code() in REFUSED:
            _log.error("kafka_reader_told", topic=self._topic, error=error.str())

    def _replace(self, consumer: Consumer) -> Consumer:
        """Puts a new client in the place of one that a fatal error has ended; callers that waited ask again."""
        self._broken = False
        consumer.close()
        while True:
            try:
                return self._at_the_end()
            except (Unavailable, StartRefusedError) as error:
                _log.warning("kafka_reader_failed", topic=self._topic, error=str(error))
                if self._closing.wait(1.0):
                    return Consumer(self._connection.client_settings() | {"group.id": f"{self._topic}.nobody"})
