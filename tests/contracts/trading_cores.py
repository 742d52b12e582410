"""The trading cores that the contract suite runs on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from contracts.event_buses import kafka_connection, own_topics
from internal_transfer.adapters.kafka.event_bus import KafkaEventBus
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.adapters.kafka.trading_core import KafkaTradingCore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Command, Verdict
from internal_transfer.hosts.core.host import CoreHost
from internal_transfer.hosts.core.kafka import KafkaCoreHost
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.trading_core import CoreBalance, TradingCore


class AnsweringCore:
    """Makes a core whose verdicts come over a bus answer at once: waits for them, as the settler does."""

    def __init__(self, core: TradingCore, bus: EventBus) -> None:
        self._core = core
        self._bus = bus

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        """All of these transfers' verdicts; those of one transfer come in the order in which they were told."""
        assert await self._core.tell(commands) == [None] * len(commands)
        answers: list[Verdict | None] = [None] * len(commands)
        while None in answers:
            delivery = await self._bus.take(len(commands))
            for verdict in delivery.verdicts:
                place = next(
                    place
                    for place, command in enumerate(commands)
                    if answers[place] is None
                    and (command.transfer_id, command.side, command.action)
                    == (verdict.transfer_id, verdict.side, verdict.action)
                )
                answers[place] = verdict
            await self._bus.acknowledge(delivery)
        return answers

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        return await self._core.verdicts(transfer_ids)

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        return await self._core.balances(owner)

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        return await self._core.entries_after(entry, most)


@asynccontextmanager
async def kafka_core(folder: Path) -> AsyncIterator[AnsweringCore]:
    """The reference core behind Kafka, with its host in this process."""
    connection, topics, clock = kafka_connection(), own_topics(), SystemClock()
    await Cluster(connection, topics).create_topics(partitions=1)
    database = Database(folder / "core.db")
    host = KafkaCoreHost(CoreHost(database, clock=clock), connection, topics, clock=clock)
    core = KafkaTradingCore(connection, topics, clock=clock)
    bus = KafkaEventBus(connection, topics, clock=clock)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(host.run(stop))
        await core.start()
        await bus.start()
        try:
            yield AnsweringCore(core, bus)
        finally:
            stop.set()
            await serving
            await bus.close()
            await core.close()
    database.close()
