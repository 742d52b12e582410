"""The event bus over Kafka: offsets, partitions, poison, and brokers that go away and come back."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from msgspec.structs import replace

from contracts.event_buses import drain, kafka_connection, own_topics, read_topic
from internal_transfer.adapters.kafka import consumer, producer
from internal_transfer.adapters.kafka.consumer import ConsumerBounds
from internal_transfer.adapters.kafka.event_bus import KafkaEventBus
from internal_transfer.adapters.kafka.producer import KafkaProducer, Outgoing
from internal_transfer.adapters.kafka.settings import KafkaConnection, KafkaLogin, Mechanism
from internal_transfer.adapters.kafka.topics import Cluster, Topics
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Outcome, Side, Verdict
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, System, Unavailable
from internal_transfer.settings.tls import TlsFiles
from real_servers import need, own

QUICK = ConsumerBounds(commit_seconds=0.02)


def verdict(transfer: int, reason: str = "") -> Verdict:
    account = Account(Owner("alice"), "spot", "USDT")
    return Verdict(TransferId(transfer), Side.TARGET, Action.APPLY, Outcome.APPLIED, reason, "USDT", 1, None, account)


class World:
    """A Kafka with topics of its own, and the buses of a test on it."""

    def __init__(self, connection: KafkaConnection, topics: Topics, leaving: AsyncExitStack) -> None:
        self.connection = connection
        self.topics = topics
        self._leaving = leaving

    async def bus(
        self, *, bounds: ConsumerBounds = QUICK, on_poison: Callable[[str], None] = lambda _: None
    ) -> KafkaEventBus:
        bus = KafkaEventBus(self.connection, self.topics, clock=SystemClock(), bounds=bounds, on_poison=on_poison)
        await bus.start()
        self._leaving.push_async_callback(bus.close)
        return bus

    async def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Writes anything to a topic."""
        producer = KafkaProducer(self.connection, system=System.BUS)
        producer.start()
        await producer.send([Outgoing(topic, key, value, [("from", b"a test")])])
        await producer.close()


@pytest.fixture(params=[1])
async def world(request):
    connection, topics = kafka_connection(), own_topics()
    await Cluster(connection, topics).create_topics(partitions=request.param)
    async with AsyncExitStack() as leaving:
        yield World(connection, topics, leaving)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that other threads bring about."""
    clock = SystemClock()
    while not condition():
        await clock.sleep(0.01)


async def test_a_crash_before_the_acknowledgement_brings_it_back(world):
    """The messages that a process had in hand when it died, and all after them, come again to its successor."""
    first = await world.bus()
    await first.publish([verdict(1), verdict(2), verdict(3)])
    await first.take(2)
    await first.abandon()
    second = await world.bus()
    assert await drain(second, 3) == [verdict(1), verdict(2), verdict(3)]


async def test_an_offset_is_committed_only_behind_all_that_is_done(world):
    """Of several deliveries, one that is not acknowledged comes again although a later one is."""
    bus = await world.bus()
    await bus.publish([verdict(1), verdict(2), verdict(3)])
    done = await bus.take(1)
    await bus.take(1)
    late = await bus.take(1)
    await bus.acknowledge(late)
    await bus.acknowledge(done)
    await bus.close()
    again = await world.bus()
    await again.publish([verdict(4)])
    assert await drain(again, 3) == [verdict(2), verdict(3), verdict(4)]


async def test_what_is_acknowledged_does_not_come_again(world):
    """After a clean stop the successor begins after everything that was acknowledged."""
    bus = await world.bus()
    await bus.publish([verdict(1), verdict(2)])
    await drain(bus, 2)
    await bus.close()
    again = await world.bus()
    await again.publish([verdict(3)])
    assert await drain(again, 1) == [verdict(3)]


@pytest.mark.parametrize("world", [4], indirect=True)
async def test_a_rebalance_forgets_what_others_have_now(world):
    """A second process takes over partitions and the messages in hand there; the first one's late acknowledgement has
    no effect, and nothing is lost.
    """
    first = await world.bus()
    transfers = range(1, 41)
    await first.publish([verdict(number) for number in transfers])
    await until(lambda: first.owed == 40)
    stale = await first.take(40)
    second = await world.bus()
    await until(lambda: first.partitions == 2 and second.partitions == 2)
    await first.acknowledge(stale)
    # What the first one lost is the second one's; it is known by what the first one does not owe any more.
    lost = 40 - first.owed
    seen_by_second = await drain(second, lost)
    seen_by_first = await drain(first, 40 - lost)
    assert {each.transfer_id for each in [*seen_by_first, *seen_by_second]} == set(transfers)
    assert 0 < lost < 40


@pytest.mark.parametrize("world", [4], indirect=True)
async def test_order_per_transfer_over_partitions_and_processes(world):
    """Two processes with several consumers each see every transfer's confirmations in order."""
    buses = [await world.bus(), await world.bus()]
    await until(lambda: all(bus.partitions == 2 for bus in buses))
    seen: dict[int, list[int]] = defaultdict(list)
    left = 1_000

    async def consume(bus: KafkaEventBus) -> None:
        nonlocal left
        while True:
            delivery = await bus.take(7)
            await asyncio.sleep(0)
            for each in delivery.verdicts:
                seen[each.transfer_id].append(int(each.reason))
            await bus.acknowledge(delivery)
            left -= len(delivery.verdicts)
            if left <= 0:
                finished.set()

    finished = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        consumers = [tasks.create_task(consume(bus)) for bus in buses for _ in range(3)]
        for step in range(50):
            await buses[step % 2].publish([verdict(number, f"{step}") for number in range(1, 21)])
        await finished.wait()
        for task in consumers:
            task.cancel()
    assert seen == {number: list(range(50)) for number in range(1, 21)}


async def test_poison_goes_to_the_dead_letters(world):
    """A message that cannot be decoded, or has another version, is put aside with the reason and counted; the others go
    on.
    """
    reasons: list[str] = []
    bus = await world.bus(on_poison=reasons.append)
    await bus.publish([verdict(1)])
    await world.send(world.topics.verdicts, b"1", b"not JSON")
    await world.send(world.topics.verdicts, b"1", b'{"type":"verdict/2"}')
    await bus.publish([verdict(2)])
    assert await drain(bus, 2) == [verdict(1), verdict(2)]
    letters = await read_topic(world.connection, world.topics.dead_letters, 2)
    assert [letter.value() for letter in letters] == [b"not JSON", b'{"type":"verdict/2"}']
    headers = [dict(letter.headers()) for letter in letters]
    assert [each["dead-letter-reason"].decode() for each in headers] == reasons
    assert "verdict/2" in reasons[1]
    assert headers[0]["dead-letter-topic"] == world.topics.verdicts.encode()
    assert headers[0]["dead-letter-offset"] == b"1"
    assert headers[0]["from"] == b"a test"
    await until(lambda: bus.owed == 0)
    await bus.close()
    again = await world.bus(on_poison=reasons.append)
    await again.publish([verdict(3)])
    assert await drain(again, 1) == [verdict(3)]
    assert len(reasons) == 2


async def test_a_dead_letter_that_cannot_be_written_is_not_skipped(world):
    """While the topic of dead letters refuses the message, it stays owed; it is written once the topic accepts it."""
    bus = await world.bus()
    await set_topic(world, world.topics.dead_letters, "max.message.bytes", "10")
    await world.send(world.topics.verdicts, b"1", b"not JSON")
    await bus.publish([verdict(1)])
    assert await drain(bus, 1) == [verdict(1)]
    assert bus.owed == 1
    await bus.close()
    await set_topic(world, world.topics.dead_letters, "max.message.bytes", "2000000")
    again = await world.bus()
    [letter] = await read_topic(world.connection, world.topics.dead_letters, 1)
    assert letter.value() == b"not JSON"
    assert await drain(again, 1) == [verdict(1)]
    await until(lambda: again.owed == 0)


async def set_topic(world: World, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(world.connection.client_settings())
    for future in admin.incremental_alter_configs([resource]).values():
        await asyncio.to_thread(future.result, 10)
    told: str | None = None
    # The controller confirms a change before the brokers, which answer questions about it, have heard of it.
    while told != value:
        [asked] = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        told = (await asyncio.to_thread(asked.result, 10))[name].value


async def test_a_client_that_breaks_is_replaced(world, monkeypatch):
    """A new client replaces one with a fatal error; the messages in hand come again, and nothing is lost."""
    listeners: list[Callable[[KafkaError], None]] = []

    def listening(kind: Callable[..., object]) -> Callable[..., object]:
        def make(settings, **rest):
            listeners.append(settings["error_cb"])
            return kind(settings, **rest)

        return make

    monkeypatch.setattr(consumer, "Consumer", listening(Consumer))
    monkeypatch.setattr(producer, "Producer", listening(Producer))
    bus = await world.bus()
    await bus.publish([verdict(1)])
    await bus.take(1)
    for tell in tuple(listeners):
        tell(KafkaError(KafkaError._FATAL, fatal=True))
    await until(lambda: len(listeners) == 4)
    await publish_until_taken(bus, verdict(2))
    assert await drain(bus, 2) == [verdict(1), verdict(2)]


async def test_what_is_outstanding_is_bounded(world):
    """A bus whose consumers are slow stops receiving at its bound, and receives the rest as they go on."""
    bus = await world.bus(bounds=ConsumerBounds(batch_most=10, outstanding_most=20, commit_seconds=0.02))
    await bus.publish([verdict(number) for number in range(1, 201)])
    seen: list[Verdict] = []
    while len(seen) < 200:
        delivery = await bus.take(100)
        assert bus.owed < 20 + 10
        seen += delivery.verdicts
        await bus.acknowledge(delivery)
    assert [each.transfer_id for each in seen] == list(range(1, 201))


async def test_a_missing_topic_refuses_the_start():
    """A bus whose topics were never made does not start, and says which one is missing."""
    topics = own_topics()
    bus = KafkaEventBus(kafka_connection(), topics, clock=SystemClock())
    with pytest.raises(StartRefusedError, match=rf"{topics.prefix}.*does not exist"):
        await bus.start()


async def test_a_cluster_that_is_not_there():
    """Where nobody listens the start is `Unavailable`, and `check` says so instead of failing."""
    connection = KafkaConnection(bootstrap="127.0.0.1:9")
    with pytest.raises(Unavailable) as failure:
        await Cluster(connection, Topics("x"), call_seconds=0.5).require()
    assert failure.value.system is System.BUS
    ((name, ok, _),) = await Cluster(connection, Topics("x"), call_seconds=0.5).check()
    assert (name, ok) == ("kafka connection", False)


async def test_a_compacted_topic_refuses_the_start(world):
    """A bus with a compacted topic, which loses messages, does not start."""
    await set_topic(world, world.topics.verdicts, "cleanup.policy", "compact")
    with pytest.raises(StartRefusedError, match="compacted"):
        await world.bus()


async def test_check_tells_what_is_well(world):
    """On a healthy cluster every finding of the check is good."""
    lines = await Cluster(world.connection, world.topics).check()
    assert all(ok for _, ok, _ in lines)
    assert {f"topic {name}" for name in world.topics.all} <= {name for name, _, _ in lines}


async def test_a_broker_that_is_killed_and_comes_back():
    """While the broker is gone, sending fails and says why; afterwards the bus goes on by itself, and nothing that was
    confirmed is lost.
    """
    with own("kafka") as server:
        connection = KafkaConnection(bootstrap=server.address().bootstrap, session_seconds=6.0, delivery_seconds=2.0)
        topics = own_topics()
        await Cluster(connection, topics).create_topics(partitions=1)
        async with AsyncExitStack() as leaving:
            bus = await World(connection, topics, leaving).bus()
            # A broker that has only just started may take longer than the client's short deadline.
            await publish_until_taken(bus, verdict(1))
            await publish_until_taken(bus, verdict(2))
            await bus.acknowledge(await bus.take(1))
            await asyncio.to_thread(server.kill)
            await until(lambda: bus.failure is not None)
            failure: OperatingFailureError | None = None
            while not isinstance(failure, Unavailable):
                with pytest.raises(OperatingFailureError) as caught:
                    await bus.publish([verdict(3, "lost")])
                failure = caught.value
            assert failure.system is System.BUS
            await asyncio.to_thread(server.start)
            await until(lambda: bus.failure is None)
            await publish_until_taken(bus, verdict(4))
            seen: list[Verdict] = []
            while verdict(4) not in seen:
                seen += await drain(bus, 1)
            assert verdict(2) in seen


async def publish_until_taken(bus: KafkaEventBus, each: Verdict) -> None:
    while True:
        try:
            await bus.publish([each])
        except OperatingFailureError:
            await SystemClock().sleep(0.1)
        else:
            return


def secured() -> KafkaConnection:
    """The shared Kafka that asks for a certificate, a user and a password."""
    address = need("kafka", secured=True)
    tls = TlsFiles(
        ca_file=str(address.tls.ca_file),
        cert_file=str(address.tls.certificate_file),
        key_file=str(address.tls.key_file),
    )
    return KafkaConnection(
        bootstrap=f"{address.host}:{address.tls.port}",
        tls=tls,
        login=KafkaLogin(user=address.user, password=address.password, mechanism=Mechanism.PLAIN),
    )


async def test_log_in_and_encryption():
    """The bus works with a user, a password and certificates, and with a user and a password alone."""
    encrypted, address = secured(), need("kafka", secured=True)
    for connection in (encrypted, KafkaConnection(bootstrap=address.bootstrap, login=encrypted.login)):
        topics = own_topics()
        await Cluster(connection, topics).create_topics(partitions=1)
        async with AsyncExitStack() as leaving:
            bus = await World(connection, topics, leaving).bus()
            await bus.publish([verdict(1)])
            assert await drain(bus, 1) == [verdict(1)]


@pytest.mark.parametrize(
    "change",
    [
        {"login": KafkaLogin(user="admin", password="not-the-one", mechanism=Mechanism.PLAIN)},
        {"tls": TlsFiles()},
    ],
    ids=["wrong password", "unknown authority"],
)
async def test_a_refused_client_does_not_start(change):
    """A bus that the cluster refuses, or that does not trust the cluster, does not start, and shows no password."""
    connection = replace(secured(), **change)
    with pytest.raises(StartRefusedError, match="refuses us") as refused:
        await KafkaEventBus(connection, own_topics(), clock=SystemClock()).start()
    assert "not-the-one" not in str(refused.value)
    assert "not-the-one" not in repr(connection)


async def test_a_user_without_permission_does_not_start():
    """For a user without permissions the start fails and says that topics or permissions are missing."""
    right = secured()
    topics = own_topics()
    await Cluster(right, topics).create_topics(partitions=1)
    limited = replace(right, login=KafkaLogin(user="limited", password=right.login.password, mechanism=Mechanism.PLAIN))
    with pytest.raises(StartRefusedError, match="permit"):
        await KafkaEventBus(limited, topics, clock=SystemClock()).start()


async def test_a_tls_file_that_is_not_there(tmp_path):
    """The start fails on a certificate that cannot be read, and names it."""
    connection = replace(kafka_connection(), tls=TlsFiles(ca_file=str(tmp_path / "no-such.pem")))
    with pytest.raises(StartRefusedError, match=r"no-such\.pem"):
        await KafkaEventBus(connection, own_topics(), clock=SystemClock()).start()
