"""Puts aside what a consumer cannot decode, with the reason and where it came from."""

from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from confluent_kafka import KafkaError, Message

from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.progress import Place
from internal_transfer.ports.clock import Clock

_log = structlog.get_logger(__name__)


class DeadLetters:
    """The dead letters of one consumer, used in its thread.

    `written` is told, in the producer's thread, when a letter is confirmed: only then may its offset be committed.
    After a failure all letters wait for `retry_seconds`.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        topic: str,
        *,
        written: Callable[[Place], None],
        clock: Clock,
        retry_seconds: float,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._written = written
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._waiting: deque[tuple[Outgoing, Place]] = deque()
        self._send_at = 0.0

    def add(self, message: Message, place: Place, reason: str) -> None:
        """Has a message sent with the next `send`."""
        headers: Any = message.headers() or []
        headers = [
            *headers,
            ("dead-letter-reason", reason.encode()),
            ("dead-letter-topic", (message.topic() or "").encode()),
            ("dead-letter-partition", str(place.partition).encode()),
            ("dead-letter-offset", str(place.offset).encode()),
        ]
        letter = Outgoing(self._topic, message.key() or b"", message.value() or b"", headers)
        self._waiting.append((letter, place))

    def send(self) -> None:
        """Sends the letters that wait; one that is not confirmed waits again."""
        if not self._waiting or self._clock.monotonic() < self._send_at:
            return
        for _ in range(len(self._waiting)):
            self._send(*self._waiting.popleft())

    def _send(self, letter: Outgoing, place: Place) -> None:
        def report(error: KafkaError | None, _message: object) -> None:
            if error is None:
                self._written(place)
            else:
                _log.error("kafka_dead_letter_not_written", topic=letter.topic, error=error.str())
                self._send_at = self._clock.monotonic() + self._retry_seconds
                self._waiting.append((letter, place))

        if not self._producer.send_and_report(letter, report):
            self._waiting.append((letter, place))
