"""One core, one directory: a second core on the same prefix is refused."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from contracts.event_buses import kafka_connection, own_topics
from internal_transfer.adapters.kafka.event_bus import KafkaEventBus
from internal_transfer.adapters.kafka.topics import Cluster
from internal_transfer.adapters.kafka.trading_core import KafkaTradingCore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side
from internal_transfer.hosts.core.host import CoreHost
from internal_transfer.hosts.core.kafka import KafkaCoreHost
from internal_transfer.hosts.core.process import CoreOptions, run_core
from internal_transfer.ports.errors import StartRefusedError

CLOCK = SystemClock()
SPOT = Account(Owner("alice"), "spot", "USDT")


def command_of(transfer: int) -> Command:
    return Command(TransferId(transfer), "main", Side.TARGET, Action.APPLY, "USDT", 100, None, SPOT)


async def until(condition: Callable[[], object]) -> None:
    """Lets other tasks run until this is true."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread.
        await asyncio.sleep(0.01)


class Prefix:
    """A test's own topics, and the cores that are started on them."""

    def __init__(self, folder: Path) -> None:
        self.connection, self.topics = kafka_connection(), own_topics()
        self.core = KafkaTradingCore(self.connection, self.topics, clock=CLOCK)
        self.bus = KafkaEventBus(self.connection, self.topics, clock=CLOCK)
        self._folder = folder

    @asynccontextmanager
    async def served(self, name: str) -> AsyncIterator["Serving"]:
        """A core on the database of that name, from its start until the block ends."""
        database = Database(self._folder / f"{name}.db")
        serving = Serving(KafkaCoreHost(CoreHost(database, clock=CLOCK), self.connection, self.topics, clock=CLOCK))
        try:
            yield serving
        finally:
            serving.stop.set()
            with suppress(StartRefusedError):
                await serving.task
            database.close()

    async def settle(self, commands: range) -> list[Outcome]:
        """Tells commands and takes their verdicts; some may come twice."""
        await self.core.tell([command_of(number) for number in commands])
        outcomes: dict[int, Outcome] = {}
        while not outcomes.keys() >= set(commands):
            delivery = await self.bus.take(1_000)
            outcomes |= {verdict.transfer_id: verdict.outcome for verdict in delivery.verdicts}
            await self.bus.acknowledge(delivery)
        return [outcomes[number] for number in commands]

    async def committed(self) -> list[TopicPartition]:
        """The offsets that the core's group has committed on each partition of the commands."""
        admin, group = AdminClient(self.connection.client_settings()), f"{self.topics.prefix}.core"
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group]
        return (await asyncio.to_thread(asked.result)).topic_partitions


class Serving:
    """A core that runs, or has ended."""

    def __init__(self, host: KafkaCoreHost) -> None:
        self.host = host
        self.stop = asyncio.Event()
        self.task = asyncio.ensure_future(host.run(self.stop))

    async def decided(self) -> bool:
        """Waits until it serves or has ended; returns True where it serves."""
        await until(lambda: self.task.done() or self.host.state().ready)
        return not self.task.done()


@pytest.fixture
async def prefix(tmp_path):
    prefix = Prefix(tmp_path)
    await Cluster(prefix.connection, prefix.topics).create_topics(partitions=3)
    await prefix.core.start()
    await prefix.bus.start()
    yield prefix
    await prefix.bus.close()
    await prefix.core.close()


async def test_another_directory_is_refused(prefix):
    """A core with another database is refused, while the first core works and after it has ended; a core on the first
    database starts again and remembers.
    """
    async with prefix.served("first") as first:
        assert await first.decided()
        assert await prefix.settle(range(1, 101)) == [Outcome.APPLIED] * 100
        async with prefix.served("second") as second:
            assert not await second.decided()
            with pytest.raises(StartRefusedError, match=r"another trading core .* works on the topic"):
                await second.task
            assert await prefix.settle(range(1, 201)) == [Outcome.APPLIED] * 200
            assert first.host.state().ready
    async with prefix.served("second") as second:
        assert not await second.decided()
    async with prefix.served("first") as first:
        assert await first.decided()
        assert await prefix.settle(range(1, 201)) == [Outcome.APPLIED] * 200
        assert [balance.posted for balance in await prefix.core.balances(SPOT.owner)] == [20_000]


async def test_its_process_is_refused(prefix, tmp_path):
    """The process of a core with another directory ends with the refusal and releases its directory."""
    options = CoreOptions(
        tmp_path / "second", lambda host, clock: KafkaCoreHost(host, prefix.connection, prefix.topics, clock=clock)
    )
    async with prefix.served("first") as first:
        assert await first.decided()
        for _ in range(2):
            with pytest.raises(StartRefusedError, match="start the core on that one's data directory"):
                await run_core(options)


async def test_two_that_start_at_once(prefix):
    """Of two cores that start at the same moment on new topics, one is refused and the other carries everything out."""
    async with prefix.served("first") as first, prefix.served("second") as second:
        both = [first, second]
        await until(lambda: any(each.task.done() for each in both) or all(each.host.state().ready for each in both))
        (refused,) = [each for each in both if each.task.done()]
        with pytest.raises(StartRefusedError, match="another trading core"):
            await refused.task
        (other,) = [each for each in both if each is not refused]
        assert await other.decided()
        assert await prefix.settle(range(1, 101)) == [Outcome.APPLIED] * 100
        assert [balance.posted for balance in await prefix.core.balances(SPOT.owner)] == [10_000]
        assert refused.host.state().commands == 0


async def test_questions_wait_for_the_claim(prefix):
    """A core that does not own the prefix answers no queries: it would say that it has seen nothing."""
    async with prefix.served("first") as first:
        assert await first.decided()
        assert await prefix.settle(range(1, 2)) == [Outcome.APPLIED]
        async with prefix.served("second") as second:
            for _ in range(20):
                assert [len(given) for given in await prefix.core.verdicts([TransferId(1)])] == [1]
            assert not await second.decided()


async def test_the_topics_are_handed_over(prefix):
    """An operator who sets the claimed offset to its present value hands the topics to a core with another database,
    which begins with what was not carried out.
    """
    async with prefix.served("first") as first:
        assert await first.decided()
        assert await prefix.settle(range(1, 101)) == [Outcome.APPLIED] * 100
        # Else the other one would, rightly, receive again what was carried out and not committed.
        while sum(place.offset for place in await prefix.committed() if place.offset > 0) < 100:
            pass
    admin, group = AdminClient(prefix.connection.client_settings()), f"{prefix.topics.prefix}.core"
    [place] = [place for place in await prefix.committed() if place.partition == 0]
    bare = [TopicPartition(place.topic, place.partition, place.offset)]
    told = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, bare)])[group]
    await asyncio.to_thread(told.result)
    async with prefix.served("second") as second:
        assert await second.decided()
        assert await prefix.settle(range(101, 151)) == [Outcome.APPLIED] * 50
        assert [balance.posted for balance in await prefix.core.balances(SPOT.owner)] == [5_000]
    async with prefix.served("first") as first:
        assert not await first.decided()
