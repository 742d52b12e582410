"""Trading cores behind Kafka: commands and queries go to topics, verdicts come over the event bus, replies by a topic.

Every process reads the replies from the end of their topic and keeps its own; see `wire/core_questions.py`.
"""

from collections.abc import Sequence

from internal_transfer.adapters.kafka.messages import about_query, about_transfer
from internal_transfer.adapters.kafka.producer import KafkaProducer
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.tail import TailReader
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import ENTRIES_PER_QUERY_MAX, TRANSFERS_PER_QUERY_MAX, encode_command
from internal_transfer.wire.core_questions import AskBounds, AskedCore

# Kafka keeps a query for a core that is away, so it is not sent again.
BOUNDS = AskBounds(again_seconds=None, transfers_most=TRANSFERS_PER_QUERY_MAX, entries_most=ENTRIES_PER_QUERY_MAX)


class KafkaTradingCore(AskedCore):
    """Implements `TradingCore`.

    `tell` returns None for every command. The client gives a command up after the connection's `delivery_seconds`, so
    none is sent later than that.
    """

    def __init__(
        self, connection: KafkaConnection, topics: Topics, *, clock: Clock, bounds: AskBounds = BOUNDS
    ) -> None:
        super().__init__(clock, bounds)
        self._topics = topics
        self._cluster = Cluster(connection, topics)
        self._producer = KafkaProducer(connection, system=System.CORE)
        self._replies = TailReader(
            connection, topic=topics.replies, own_prefix=f"{self._name}.".encode(), deliver=self._hear, clock=clock
        )

    @property
    def failure(self) -> str | None:
        """Why no commands can be sent, as far as is known; for readiness."""
        away = self._producer.away
        return away and f"Kafka: {away}"

    async def start(self) -> None:
        """Connects.

        Raises `Unavailable` where the cluster cannot be reached, and `StartRefusedError` where it cannot be used.
        """
        await self._cluster.require()
        await self._replies.start()
        self._producer.start()

    async def close(self) -> None:
        """Sends what is on its way and disconnects."""
        await self._producer.close()
        await self._replies.close()

    async def check(self) -> list[Finding]:
        """The findings of `doctor`: those on the cluster, and whether a core answers."""
        lines = await self._cluster.check()
        try:
            await self.entries_after(0, 1)
        except Unavailable as error:
            return [*lines, Finding("trading core", False, error.message)]
        return [*lines, Finding("trading core", True, "it answers")]

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """Sends commands; returns when all replicas have them. See the port."""
        await self._producer.send(
            [
                about_transfer(self._topics.commands, command.transfer_id, encode_command(command))
                for command in commands
            ]
        )
        return [None] * len(commands)

    async def _send(self, name: str, message: bytes) -> None:
        await self._producer.send([about_query(self._topics.queries, name, message)])
