"""The event buses that the contract suite runs on."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from confluent_kafka import Consumer, Message

from internal_transfer.adapters.in_process.event_bus import MemoryEventBus
from internal_transfer.adapters.kafka.consumer import ConsumerBounds
from internal_transfer.adapters.kafka.event_bus import KafkaEventBus
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.leg import Verdict
from internal_transfer.ports.event_bus import EventBus
from real_servers import need


@dataclass
class Bench:
    """A bus, and how its consumers are restarted: everything that is not acknowledged is handed out again."""

    bus: EventBus
    again: Callable[[], Awaitable[EventBus]]
    close: Callable[[], Awaitable[None]]

    async def restart(self) -> None:
        self.bus = await self.again()


async def drain(bus: EventBus, count: int) -> list[Verdict]:
    """Takes at least this many confirmations, acknowledging each delivery."""
    seen: list[Verdict] = []
    while len(seen) < count:
        delivery = await bus.take(100)
        seen += delivery.verdicts
        await bus.acknowledge(delivery)
    return seen


def memory_bench() -> Bench:
    bus = MemoryEventBus()

    async def again() -> MemoryEventBus:
        bus.redeliver()
        return bus

    async def close() -> None:
        pass

    return Bench(bus, again, close)


def kafka_connection() -> KafkaConnection:
    """The shared Kafka."""
    return KafkaConnection(bootstrap=need("kafka").bootstrap, session_seconds=6.0)


def own_topics() -> Topics:
    """Names that no other test has."""
    return Topics(f"test-{uuid.uuid4().hex[:12]}")


async def read_topic(connection: KafkaConnection, topic: str, count: int) -> list[Message]:
    """The first messages of a topic."""

    def read() -> list[Message]:
        settings = connection.client_settings() | {"group.id": f"{topic}.test", "auto.offset.reset": "earliest"}
        consumer = Consumer(settings)
        consumer.subscribe([topic])
        found: list[Message] = []
        while len(found) < count:
            message = consumer.poll(30)
            assert message is not None, f"{len(found)} messages on {topic}, not {count}"
            assert message.error() is None
            found.append(message)
        consumer.close()
        return found

    return await asyncio.to_thread(read)


async def kafka_bench() -> Bench:
    connection, topics = kafka_connection(), own_topics()
    await Cluster(connection, topics).create_topics(partitions=1)
    buses: list[KafkaEventBus] = []

    async def again() -> KafkaEventBus:
        for bus in buses:
            await bus.close()
        buses[:] = [KafkaEventBus(connection, topics, clock=SystemClock(), bounds=ConsumerBounds(commit_seconds=0.02))]
        await buses[0].start()
        return buses[0]

    async def close() -> None:
        await buses[0].close()

    return Bench(await again(), again, close)
