"""A producer with a thread of its own, which polls for the brokers' confirmations.

The client's `produce()` only puts a message into a queue, from which the library's threads send it. The client is
idempotent and waits for all replicas, so that its own retries neither double nor reorder messages.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from internal_transfer.adapters.kafka.settings import REFUSED, ClientLog, KafkaConnection
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.wire.core_messages import MESSAGE_BYTES_MAX

_log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
PROBE_SECONDS = 1.0
OVERHEAD_BYTES = 10_000
"""How much key, headers and framing may add to a message."""

ANSWER_MARGIN_SECONDS = 2.0
"""How much longer than the client's own deadline a caller waits for the client's report."""

_NEVER_SENT = REFUSED | {
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - confluent-kafka's public names of local errors.
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_REQUIRED_ACKS,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
}
"""Reports which mean for certain that no broker has taken the message."""


class Outgoing(NamedTuple):
    """A message to send. Those with one key arrive in the order in which they were sent."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class _Batch:
    """Messages whose confirmations one caller waits for."""

    __slots__ = ("errors", "future", "left", "loop")

    def __init__(self, count: int) -> None:
        self.left = count
        self.errors: list[KafkaError] = []
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def report(self, error: KafkaError | None, _message: object) -> None:
        """Takes one confirmation, in the producer's thread."""
        if error is not None:
            self.errors.append(error)
        self.left -= 1
        if not self.left:
            try:
                self.loop.call_soon_threadsafe(self._finish)
            except RuntimeError:
                _log.warning("kafka_confirmation_after_the_loop_ended")

    def _finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class KafkaProducer:
    """Sends messages and waits until all replicas have them.

    At most `queue_most` messages are on their way. While no broker can be reached, sending fails at once; the thread
    probes until a broker is back.
    """

    def __init__(self, connection: KafkaConnection, *, system: System, queue_most: int = 20_000) -> None:
        self._connection = connection
        self._system = system
        self._queue_most = queue_most
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._away: str | None = None
        self._broken = False

    @property
    def away(self) -> str | None:
        """Why nothing can be sent now; None where the brokers were there at the last contact."""
        return self._away

    def start(self) -> None:
        """Starts the thread; raises `StartRefusedError` for TLS files that cannot be read."""
        assert self._thread is None, "started already"
        self._producer = self._make()
        self._thread = threading.Thread(target=self._work, name="kafka-producer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Sends what is on its way, within the delivery deadline, and ends the thread."""
        if self._thread is not None:
            self._closing.set()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
            self._producer = None

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns when every message is confirmed.

        Raises `Unavailable` where none was taken by a broker, and `OutcomeUnknown` where some may have been.
        """
        if not messages:
            return
        producer = self._producer
        if producer is None or self._closing.is_set():
            raise Unavailable(self._system, "the connection to Kafka is closed")
        if self._away is not None:
            raise Unavailable(self._system, f"Kafka cannot be reached: {self._away}")
        if len(producer) + len(messages) > self._queue_most:
            raise Unavailable(self._system, f"{len(producer)} messages are on their way to Kafka already")
        batch = _Batch(len(messages))
        for place, message in enumerate(messages):
            try:
                producer.produce(
                    message.topic, message.value, message.key, on_delivery=batch.report, headers=message.headers
                )
            except (BufferError, KafkaException) as error:
                if place == 0:
                    raise Unavailable(self._system, f"Kafka's client took no message: {error}") from error
                raise OutcomeUnknown(self._system, f"Kafka's client took a part of a batch: {error}") from error
        try:
            async with asyncio.timeout(self._connection.delivery_seconds + ANSWER_MARGIN_SECONDS):
                await batch.future
        except TimeoutError as error:
            raise OutcomeUnknown(self._system, "Kafka has not confirmed in time") from error
        if batch.errors:
            raise self._failure(batch.errors, all_failed=len(batch.errors) == len(messages))

    def send_and_report(self, message: Outgoing, report: Callable[[KafkaError | None, object], None]) -> bool:
        """Sends one message from any thread; returns False where the client takes none, or is closed.

        `report` is called in the producer's thread.
        """
        producer = self._producer
        if producer is None or self._closing.is_set():
            return False
        try:
            producer.produce(message.topic, message.value, message.key, on_delivery=report, headers=message.headers)
        except (BufferError, KafkaException) as error:
            _log.warning("kafka_message_not_taken", error=str(error))
            return False
        return True

    def _failure(self, errors: Sequence[KafkaError], *, all_failed: bool) -> OperatingFailureError:
        text = f"Kafka has not confirmed {len(errors)} messages: {errors[0].str()}"
        never = all_failed and all(error.code() in _NEVER_SENT for error in errors)
        failure = Unavailable(self._system, text) if never else OutcomeUnknown(self._system, text)
        failure.__cause__ = KafkaException(errors[0])
        return failure

    def _make(self) -> Producer:
        settings: dict[str, Any] = self._connection.client_settings() | {
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",  # As the Java clients do, so that a core in another language agrees.
            "linger.ms": 1,
            "message.max.bytes": MESSAGE_BYTES_MAX + OVERHEAD_BYTES,
            "compression.type": "lz4",
            "delivery.timeout.ms": round(self._connection.delivery_seconds * 1000),
            "request.timeout.ms": round(self._connection.delivery_seconds * 1000),
            "queue.buffering.max.messages": self._queue_most + 1_000,
            "error_cb": self._heard,
        }
        return Producer(settings, logger=ClientLog())

    def _heard(self, error: KafkaError) -> None:
        """Takes note of the client's errors, in the thread."""
        if error.fatal():
            self._broken = True
            _log.error("kafka_producer_broke", error=error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN or error.code() in REFUSED:  # noqa: SLF001
            if self._away is None:
                _log.warning("kafka_away", error=error.str())
            self._away = error.str()

    def _work(self) -> None:
        producer = self._producer
        assert producer is not None, "the thread starts after the client"
        while not self._closing.is_set():
            try:
                producer.poll(POLL_SECONDS if self._away is None else 0.0)
                if self._broken:
                    producer = self._replace(producer)
                if self._away is not None:
                    self._probe(producer)
            except Exception as error:  # noqa: BLE001 - the thread's outermost loop: a bug must neither end it nor hide.
                _log.error("kafka_producer_failed", exc_info=error)
                self._closing.wait(POLL_SECONDS)
        producer.flush(self._connection.delivery_seconds + ANSWER_MARGIN_SECONDS)
        producer.purge()
        producer.flush(0)

    def _probe(self, producer: Producer) -> None:
        try:
            producer.list_topics(timeout=PROBE_SECONDS)
        except KafkaException:
            self._closing.wait(POLL_SECONDS)
            return
        _log.info("kafka_back")
        self._away = None

    def _replace(self, producer: Producer) -> Producer:
        """Puts a new client in the place of one that a fatal error has ended; reports what was on its way as failed."""
        self._broken = False
        self._producer = self._make()
        producer.purge()
        producer.flush(ANSWER_MARGIN_SECONDS)
        return self._producer
