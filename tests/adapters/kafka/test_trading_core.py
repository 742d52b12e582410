"""The trading core behind Kafka: one that is silent or paused, poison, a core that dies, a service of an older
release.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.event_buses import drain, kafka_connection, own_topics, read_topic
from internal_transfer.adapters.kafka.event_bus import KafkaEventBus
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.adapters.kafka.trading_core import BOUNDS, KafkaTradingCore
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.hosts.core.host import CoreHost
from internal_transfer.hosts.core.kafka import KafkaCoreHost
from internal_transfer.ports.errors import System, Unavailable
from internal_transfer.wire.core_messages import encode_command

SPOT = Account(Owner("alice"), "spot", "USDT")
CLOCK = SystemClock()


def command_of(transfer: int, action: Action = Action.APPLY) -> Command:
    return Command(TransferId(transfer), "main", Side.TARGET, action, "USDT", 100, None, SPOT)


class World:
    """A test's own topics, the service's side of them, and the core's side while it is served."""

    def __init__(self, connection: KafkaConnection, topics: Topics, folder: Path) -> None:
        self.connection = connection
        self.topics = topics
        self.folder = folder
        self.core = KafkaTradingCore(connection, topics, clock=CLOCK, bounds=replace(BOUNDS, answer_seconds=3.0))
        self.bus = KafkaEventBus(connection, topics, clock=CLOCK)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[ReferenceCore]:
        """Serves the topics from this process; `host` is the core's side meanwhile."""
        database = Database(self.folder / "core.db")
        inner = CoreHost(database, clock=CLOCK)
        self.host = host = KafkaCoreHost(inner, self.connection, self.topics, clock=CLOCK)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(host.run(stop))
            try:
                yield inner.core
            finally:
                stop.set()
                await serving
        database.close()


@pytest.fixture
async def world(tmp_path):
    connection, topics = kafka_connection(), own_topics()
    await Cluster(connection, topics).create_topics(partitions=2)
    world = World(connection, topics, tmp_path)
    await world.core.start()
    await world.bus.start()
    yield world
    await world.bus.close()
    await world.core.close()


async def test_a_silent_core(world):
    """Without a core, commands are kept and queries are `Unavailable` after their deadline; when a core comes, it
    carries the commands out.
    """
    bounds = replace(BOUNDS, answer_seconds=0.3)
    asking = KafkaTradingCore(world.connection, world.topics, clock=CLOCK, bounds=bounds)
    await asking.start()
    assert await asking.tell([command_of(1)]) == [None]
    with pytest.raises(Unavailable) as failure:
        await asking.balances(Owner("alice"))
    assert failure.value.system is System.CORE
    await asking.close()
    async with world.served():
        assert [verdict.outcome for verdict in await drain(world.bus, 1)] == [Outcome.APPLIED]


async def test_a_paused_core_and_one_that_withholds(world):
    """A paused core answers nothing and keeps commands; one that withholds its answers forgets them."""
    async with world.served() as core:
        core.mode = CoreMode.PAUSED
        await world.core.tell([command_of(1)])
        with pytest.raises(Unavailable, match="paused"):
            await world.core.verdicts([TransferId(1)])
        core.mode = CoreMode.NORMAL
        assert [verdict.outcome for verdict in await drain(world.bus, 1)] == [Outcome.APPLIED]
        core.mode = CoreMode.WITHHOLD
        await world.core.tell([command_of(2), command_of(3), command_of(2, Action.CANCEL)])
        assert [verdict.outcome for verdict in await drain(world.bus, 1)] == [Outcome.CANCELLED]
        core.mode = CoreMode.REFUSE
        await world.core.tell([command_of(3)])
        assert [verdict.outcome for verdict in await drain(world.bus, 1)] == [Outcome.REFUSED]


async def test_poison_among_commands(world):
    """A command that cannot be decoded goes to the dead letters; those before and after it are carried out."""
    producer = KafkaProducer(world.connection, system=System.CORE)
    producer.start()
    bad = encode_command(command_of(2)).replace(b'"amount":"100"', b'"amount":100')
    async with world.served():
        await world.core.tell([command_of(1)])
        await producer.send([Outgoing(world.topics.commands, b"1", bad, [])])
        await world.core.tell([command_of(1, Action.REVERSE), command_of(3)])
        outcomes = sorted(verdict.outcome for verdict in await drain(world.bus, 3))
        assert outcomes == [Outcome.APPLIED, Outcome.APPLIED, Outcome.REVERSED]
        assert await world.core.verdicts([TransferId(2)]) == [[]]
        assert world.host.state().ready
    await producer.close()


async def test_answers_go_to_who_asked(world):
    """Of two processes that ask many questions at once, each gets the answers to its own."""
    other = KafkaTradingCore(world.connection, world.topics, clock=CLOCK)
    await other.start()
    async with world.served():
        await world.core.tell([command_of(number) for number in range(1, 41)])
        await drain(world.bus, 40)
        async with asyncio.TaskGroup() as tasks:
            asked = [
                (number, tasks.create_task(core.verdicts([TransferId(number)])))
                for number in range(1, 41)
                for core in (world.core, other)
            ]
    for number, answer in asked:
        assert [verdict.transfer_id for verdict in answer.result()[0]] == [number]
    await other.close()


async def test_more_than_one_query_holds(world):
    """Questions about more transfers or entries than one message may carry are asked in parts."""
    async with world.served():
        numbers = [TransferId(number) for number in range(1, 1_301)]
        await world.core.tell([command_of(number) for number in numbers])
        await drain(world.bus, 1_300)
        assert [len(given) for given in await world.core.verdicts(numbers)] == [1] * 1_300
        assert len(await world.core.entries_after(0, 5_000)) == 1_300
        assert len(await world.core.entries_after(0, 1_100)) == 1_100


async def test_questions_are_bounded(world):
    """No more questions wait than the bound; one more is `Unavailable` at once."""
    bounds = replace(BOUNDS, answer_seconds=0.5, open_most=2)
    asking = KafkaTradingCore(world.connection, world.topics, clock=CLOCK, bounds=bounds)
    await asking.start()
    answers = await asyncio.gather(*(asking.balances(Owner("alice")) for _ in range(3)), return_exceptions=True)
    assert [isinstance(answer, Unavailable) for answer in answers] == [True] * 3
    assert sum("questions wait" in str(answer) for answer in answers) == 1
    await asking.close()


CORE_PROCESS = """
import asyncio, sys
from pathlib import Path
from internal_transfer.hosts.core.kafka import KafkaCoreHost
from internal_transfer.hosts.core.process import CoreOptions, run_core
from internal_transfer.adapters.kafka.settings import KafkaConnection
from internal_transfer.adapters.kafka.topics import Topics

connection, topics = KafkaConnection(bootstrap=sys.argv[2], session_seconds=6.0), Topics(sys.argv[3])
asyncio.run(run_core(CoreOptions(
    data=Path(sys.argv[1]),
    connect=lambda host, clock: KafkaCoreHost(host, connection, topics, clock=clock, batch_most=20),
    on_ready=lambda: print("ready", flush=True),
)))
"""


@asynccontextmanager
async def core_process(world: World) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CORE_PROCESS,
        f"{world.folder / 'core'}",
        world.connection.bootstrap,
        world.topics.prefix,
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    try:
        while (line := await process.stdout.readline()) != b"ready\n":
            assert line, "the core ended before it was ready"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_core_that_is_killed_loses_and_doubles_nothing(world):
    """A core that is killed twice at work goes on from what is on its disk, and every command has one effect; told to
    stop, it ends cleanly.
    """
    told = 2_000
    verdicts: list[Verdict] = []

    async def listen(count: int) -> None:
        while len(verdicts) < count:
            verdicts.extend(await drain(world.bus, 1))

    for place in range(2):
        async with core_process(world) as process:
            half = range(1 + place * told // 2, 1 + (place + 1) * told // 2)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(world.core.tell([command_of(number) for number in half]))
                await listen(len(verdicts) + 100)
                process.kill()
            await process.wait()
    async with core_process(world) as process:
        while {verdict.transfer_id for verdict in verdicts} != set(range(1, told + 1)):
            await listen(len(verdicts) + 1)
        (balance,) = await world.core.balances(Owner("alice"))
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert {verdict.outcome for verdict in verdicts} == {Outcome.APPLIED}
    assert balance.posted == told * 100


async def test_a_mode_from_an_older_service(world):
    """A message with which a service of the previous release sets a core's mode goes to the dead letters, and the core
    goes on unchanged.
    """
    old = b'{"type":"set_mode/1","correlation_id":"x","expires_at":%d,"mode":"paused"}' % (CLOCK.now_ms() + 60_000)
    producer = KafkaProducer(world.connection, system=System.CORE)
    producer.start()
    async with world.served():
        await producer.send([Outgoing(world.topics.queries, b"x", old, [])])
        assert [letter.value() for letter in await read_topic(world.connection, world.topics.dead_letters, 1)] == [old]
        await world.core.tell([command_of(1)])
        await drain(world.bus, 1)
        assert world.host.state().ready
    await producer.close()
