"""What only the CQL adapters have to show: crashes between any two statements, many processes at once, tampering."""

import asyncio
import os

import pytest
from cassandra import OperationTimedOut
from msgspec.structs import replace

import real_servers
from contracts.cassandra_stores import CassandraOperationsStack, CassandraStore
from internal_transfer.adapters.cassandra.migrations import migrate
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.adapters.cassandra.transfer_store import feed as cassandra_feed
from internal_transfer.adapters.cassandra.transfer_store import registry
from internal_transfer.adapters.cassandra.transfer_store.limits import Limits, Share
from internal_transfer.adapters.cassandra.transfer_store.store import MIGRATIONS, CassandraTransferStore
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.conformance.transfer_store.transfers import DAY, NOON, proposal, step, transfer
from internal_transfer.domain.account import Account
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, StartRefusedError, Unavailable
from internal_transfer.ports.operations import AuditEntry
from internal_transfer.ports.transfer_store import Accepted, DailyLimitExceeded, HistoryQuery, IdTaken, KeyTaken
from internal_transfer.settings.tls import TlsFiles


@pytest.fixture
async def stack():
    opened = await CassandraStore.opened()
    yield opened
    await opened.close()


class Stopped(Exception):  # noqa: N818 - it is no error of the store.
    """The process has stopped."""


class Stopping:
    """A driver's session that stops after a number of statements; `lost` executes one more, without an answer.

    Statements are executed one after the other, so that the stop lies between two of them.
    """

    def __init__(self, session, statements, *, lost):
        self.session = session
        self.left = statements
        self.lost = lost

    def execute_async(self, request):
        self.left -= 1
        if self.left < 0:
            if self.lost and self.left == -1:
                self.session.execute(request)
            raise Stopped
        sent = self.session.execute_async(request)
        sent.result()
        return sent


async def stop_after(stack, statements, call, *, lost=False):
    """Makes a call whose process stops after a number of statements; tells whether the call ended before that."""
    store, connection = await stack.another(), stack.connection
    connection.put_before(Stopping(connection.driver, statements, lost=lost))
    try:
        await call(store)
    except Stopped:
        return False
    finally:
        connection.put_before(connection.driver)
    return True


async def everything_holds(store, each, *, used=100):
    """Asserts one transfer for the key, counted once, with each event once, in the history and in one list."""
    [hit] = await store.by_keys([("ada", each.key)])
    now = hit.transfer
    assert await store.get([now.id]) == [now]
    assert await store.daily_used("ada", "USDT", DAY) == used
    page = await store.history(HistoryQuery(owner="ada", most=10))
    assert [shown.id for shown in page.transfers] == [now.id]
    feed = [event for _, event in await store.feed(0, 99)]
    assert [event.version for event in feed] == list(range(1, now.version + 1))
    assert [feed] == await store.events([now.id])
    assert await store.feed(len(feed), 99) == []
    listed = [shown.id for shown in await store.by_status(now.status, after=None, most=9)]
    assert listed == [now.id]
    summary = await store.open_summary()
    assert sum(summary.by_status.values()) == (now.status in {Status.REQUESTING, Status.PENDING})


async def retry(store, each):
    """What a caller does after a crash."""
    return await store.accept([proposal(each)])


async def scan(store, _each):
    """What the scanner does after a crash; twice, since the first scan may revive what the second one leases."""
    for late in (0, 10):
        await store.lease_due(now_ms=NOON + 3_000 + late, lease_ms=5, most=9)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("going_on", [retry, scan])
async def test_a_crash_between_any_two_statements_of_an_accept(stack, going_on, lost):
    """After whichever statement of an accept its process stops, with or without an answer, the next retry or scan
    finishes the accept: one transfer, counted once, or nothing at all (G5, G6, G11, G13).
    """
    for statements in range(40):
        stack.keyspace.empty(MIGRATIONS)
        each = transfer(statements)
        done = await stop_after(stack, statements, lambda store: retry(store, each), lost=lost)  # noqa: B023
        other = await stack.another()
        await going_on(other, each)
        [hit] = await other.by_keys([("ada", each.key)])
        if hit is None:
            assert going_on is scan, "a retry is always accepted"
            assert not done
            assert await other.daily_used("ada", "USDT", DAY) == 0
            assert await other.feed(0, 9) == []
            assert (await other.history(HistoryQuery(owner="ada", most=9))).transfers == []
            assert await retry(other, each) == [Accepted()]
        await everything_holds(await stack.another(), each)
        if done:
            return
    pytest.fail("an accept takes fewer statements than that")


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("final", [Status.FAILED, Status.SUCCESS])
async def test_a_crash_between_any_two_statements_of_an_end(stack, final, lost):
    """After whichever statement a process that records a final status stops, the next process comes to the same status:
    one event, a failed transfer's share given back once, and off the agenda after a scan (G8, G11, G13).
    """
    for statements in range(40):
        stack.keyspace.empty(MIGRATIONS)
        each = transfer(statements)
        before = await stack.another()
        assert await before.accept([proposal(each)]) == [Accepted()]
        [pending] = await before.record([step(each, Status.PENDING)])
        ending = step(pending, final, failure=Code.CORE_REFUSED if final is Status.FAILED else None)
        done = await stop_after(stack, statements, lambda store: store.record([ending]), lost=lost)  # noqa: B023
        other = await stack.another()
        [again] = await other.record([ending])
        assert done is False or again is None
        await scan(other, each)
        fresh = await stack.another()
        assert await fresh.get([each.id]) == [replace(ending.after, revision=3)]
        await everything_holds(fresh, each, used=0 if final is Status.FAILED else 100)
        assert stack.keyspace.execute(f"SELECT * FROM {stack.keyspace.settings.keyspace}.transfer_due") == []
        if done:
            return
    pytest.fail("an end takes fewer statements than that")


async def test_a_crash_between_any_two_statements_of_the_numbering(stack):
    """After whichever statement a process numbering the feed stops, the next neither skips nor repeats an event."""
    for statements in range(40):
        stack.keyspace.empty(MIGRATIONS)
        store = await stack.another()
        batch = [transfer(n) for n in range(3)]
        await store.accept([proposal(each) for each in batch])
        await store.record([step(batch[0], Status.PENDING)])
        done = await stop_after(stack, statements, lambda reader: reader.feed(0, 9), lost=bool(statements % 2))
        await store.record([step(batch[1], Status.FAILED)])
        feed = await (await stack.another()).feed(0, 99)
        assert [sequence for sequence, _ in feed] == list(range(1, 6))
        assert sorted((event.transfer_id, event.version) for _, event in feed) == sorted(
            [(batch[0].id, 1), (batch[0].id, 2), (batch[1].id, 1), (batch[1].id, 2), (batch[2].id, 1)]
        )
        if done:
            return
    pytest.fail("numbering takes fewer statements than that")


async def test_one_key_at_once_in_several_processes(stack):
    """Of many proposals under one key, in several processes at once, one is accepted, and the others get it (G6)."""
    stores = [await stack.another() for _ in range(4)]
    outcomes = await asyncio.gather(*[stores[n % 4].accept([proposal(transfer(n, key="k"))]) for n in range(12)])
    flat = [outcome for [outcome] in outcomes]
    [winner] = [n for n, outcome in enumerate(flat) if isinstance(outcome, Accepted)]
    won = transfer(winner, key="k")
    assert [each for each in flat if not isinstance(each, Accepted)] == [KeyTaken(won, b"content")] * 11
    assert await stores[0].daily_used("ada", "USDT", DAY) == 100
    assert [event.transfer_id for _, event in await stores[0].feed(0, 99)] == [won.id]


async def test_one_limit_at_once_in_several_processes(stack):
    """A daily limit admits exactly what it allows from several processes at once; what fails is given back (G13)."""
    stores = [await stack.another() for _ in range(4)]
    batch = [transfer(n) for n in range(24)]
    outcomes = await asyncio.gather(
        *[
            stores[n % 4].accept([proposal(each, daily_units=1_000) for each in batch[n * 4 : n * 4 + 4]])
            for n in range(6)
        ]
    )
    flat = [outcome for some in outcomes for outcome in some]
    assert flat.count(Accepted()) == 10
    assert flat.count(DailyLimitExceeded(0)) == 14
    taken = [each for each, outcome in zip(batch, flat, strict=True) if outcome == Accepted()]
    await asyncio.gather(
        *[stores[n % 4].record([step(each, Status.FAILED)]) for n, each in enumerate(taken[:5])],
        *[stores[n % 3].record([step(each, Status.FAILED)]) for n, each in enumerate(taken[:5])],
    )
    await scan(stores[0], None)
    assert await (await stack.another()).daily_used("ada", "USDT", DAY) == 500


async def test_one_id_at_once_in_several_processes(stack):
    """Of proposals with one id under several keys one is accepted; keys and shares of the others are free again."""
    stores = [await stack.another() for _ in range(4)]
    outcomes = await asyncio.gather(*[stores[n].accept([proposal(transfer(1, key=f"k{n}"))]) for n in range(4)])
    flat = [outcome for [outcome] in outcomes]
    assert (flat.count(Accepted()), flat.count(IdTaken())) == (1, 3)
    assert await stores[0].daily_used("ada", "USDT", DAY) == 100
    hits = await stores[0].by_keys([("ada", f"k{n}") for n in range(4)])
    assert [hit is not None for hit in hits] == [outcome == Accepted() for outcome in flat]


async def test_one_transfer_at_once_in_several_processes(stack):
    """Of many processes that change one transfer at once, one is told that it did, and there is one event (G8, G11)."""
    stores = [await stack.another() for _ in range(4)]
    each = transfer()
    await stores[0].accept([proposal(each)])
    results = await asyncio.gather(
        *[stores[n % 4].record([step(each, Status.PENDING, attempts=n)]) for n in range(12)],
        *[stores[n].lease_due(now_ms=NOON + 3_000, lease_ms=50, most=9) for n in range(4)],
    )
    [winner] = [n for n, [result] in enumerate(results[:12]) if result is not None]
    assert sum(len(leased) for leased in results[12:]) <= 1
    [now] = await stores[0].get([each.id])
    assert (now.status, now.attempts, now.revision) == (Status.PENDING, winner, 2)
    assert [event.version for _, event in await stores[3].feed(0, 99)] == [1, 2]
    assert [due.id for due in await stores[1].lease_due(now_ms=NOON + 9_000, lease_ms=50, most=9)] == [each.id]


async def test_due_transfers_at_once_in_several_processes(stack):
    """Scanners that lease at once never get the same transfer."""
    stores = [await stack.another() for _ in range(4)]
    batch = [transfer(n) for n in range(12)]
    await stores[0].accept([proposal(each) for each in batch])
    leases = await asyncio.gather(*[store.lease_due(now_ms=NOON + 3_000, lease_ms=50, most=9) for store in stores])
    ids = [each.id for leased in leases for each in leased]
    assert sorted(ids) == sorted(set(ids))
    rest = await stores[0].lease_due(now_ms=NOON + 3_000, lease_ms=50, most=99)
    assert sorted([*ids, *(each.id for each in rest)]) == [each.id for each in batch]


async def test_the_feed_at_once_in_several_processes(stack, monkeypatch):
    """Readers that number the feed at once, across its partitions, all get the same feed, each event once."""
    monkeypatch.setattr(cassandra_feed, "BUCKET_EVENTS", 7)
    stores = [await stack.another() for _ in range(3)]
    batch = [transfer(n) for n in range(15)]
    for start in (0, 5, 10):
        await stores[0].accept([proposal(each) for each in batch[start : start + 5]])
        await asyncio.gather(*[store.feed(0, 99) for store in stores])
    feeds = await asyncio.gather(*[store.feed(0, 99) for store in [*stores, await stack.another()]])
    assert all(feed == feeds[0] for feed in feeds)
    assert [sequence for sequence, _ in feeds[0]] == list(range(1, 16))
    assert sorted(event.transfer_id for _, event in feeds[0]) == [each.id for each in batch]
    assert await stores[0].feed(6, 3) == feeds[0][6:9]


async def test_accounts_at_once_in_several_processes(stack, monkeypatch):
    """Processes that register the same accounts at once agree on every number, across partitions of numbers."""
    monkeypatch.setattr(registry, "BUCKET_NUMBERS", 5)
    stores = [await stack.another() for _ in range(3)]
    accounts = [Account("ada", f"type{n}", "USDT") for n in range(4)]
    answers = await asyncio.gather(*[store.register(accounts[n:] + accounts[:n]) for n, store in enumerate(stores)])
    agreed = {each.account: each.number for each in answers[0]}
    assert len(set(agreed.values())) == 4
    for answer in answers:
        assert {each.account: each.number for each in answer} == agreed
    assert await stores[0].registered_by_number([agreed[each] for each in accounts]) == accounts


async def test_the_agenda_forgets_what_is_long_past(stack):
    """An empty bucket of the agenda that is long past is no longer read, and comes back with its next hint."""
    store = stack.store
    each = transfer()
    await store.accept([proposal(each)])
    [failed] = await store.record([step(each, Status.FAILED)])
    much_later = NOON + 3_600_000
    assert failed is not None
    assert await store.lease_due(now_ms=much_later, lease_ms=5, most=9) == []
    due = "agenda = 'transfer_due'"
    read = f"SELECT bucket FROM {stack.keyspace.settings.keyspace}.agenda_bucket WHERE {due}"
    assert stack.keyspace.execute(read) == []
    other = transfer(1)
    await store.accept([proposal(other)])
    assert [found.id for found in await store.lease_due(now_ms=much_later, lease_ms=5, most=9)] == [other.id]


async def test_a_claim_that_never_was_leaves_the_agenda(stack):
    """A hint at an accept that never happened is skipped, and removed when it is long past."""
    each = transfer()
    await stop_after(stack, 6, lambda store: store.accept([proposal(each)]))
    rows = f"SELECT * FROM {stack.keyspace.settings.keyspace}.transfer_due"
    assert len(stack.keyspace.execute(rows)) == 1
    assert await stack.store.lease_due(now_ms=NOON + 60_000, lease_ms=5, most=9) == []
    assert len(stack.keyspace.execute(rows)) == 1
    assert await stack.store.lease_due(now_ms=NOON + 3_600_000, lease_ms=5, most=9) == []
    assert stack.keyspace.execute(rows) == []


async def test_a_share_is_not_given_back_for_a_claim_that_took_none(stack):
    """Giving back a share that was never taken is a bug: it fails an assertion and leaves the sum unchanged."""
    share = Share(transfer(), 0, 100, fresh=False)
    with pytest.raises(AssertionError):
        await Limits(await stack.tables()).give_back([share])
    assert await stack.store.daily_used("ada", "USDT", DAY) == 0


async def test_a_migration_at_once_in_several_processes(stack):
    """Processes that migrate at once take each step once, and a keyspace newer than the program is refused."""
    settings = replace(stack.keyspace.settings, keyspace=stack.keyspace.settings.keyspace + "_m")

    sessions = [Cql(settings, SystemClock()) for _ in range(2)]
    for each in sessions:
        await each.start()
    steps = ("CREATE TABLE IF NOT EXISTS a (b int PRIMARY KEY)", "ALTER TABLE a ADD IF NOT EXISTS c text")
    await asyncio.gather(*[migrate(each, "part", steps) for each in sessions])
    assert await sessions[0].define("SELECT b, c FROM a") == []
    with pytest.raises(StartRefusedError, match="newer"):
        await migrate(sessions[0], "part", steps[:1])
    await sessions[0].define(f"DROP KEYSPACE {settings.keyspace}")
    for each in sessions:
        await each.close()


async def test_a_cluster_that_is_not_there_is_unavailable():
    """If nothing listens, the start is unavailable, so that it can be retried."""
    settings = CqlSettings(contact_points=("127.0.0.1",), port=1, datacenter="datacenter1", keyspace="k")
    with pytest.raises(Unavailable):
        await Cql(settings, SystemClock()).start()
    assert "secret" not in repr(replace(settings, user="u", password="secret"))


@pytest.mark.parametrize("replication", ["{'class': 'NoSuchStrategy'}", "{'class': 'SimpleStrategy'"])
async def test_a_replication_that_cannot_be_created_is_refused(stack, replication):
    """A start whose keyspace cannot be created with the configured replication is refused, and says to correct it."""
    settings = replace(stack.keyspace.settings, keyspace=f"test_{os.getpid()}_none", replication=replication)
    with pytest.raises(StartRefusedError, match="configure its replication"):
        await Cql(settings, SystemClock()).start()


def secured_settings():
    """The settings for the secured server."""
    address = real_servers.need("cassandra", secured=True)
    return CqlSettings(
        contact_points=(address.host,),
        port=address.port,
        datacenter=address.datacenter,
        keyspace=f"test_{os.getpid()}_secured",
        replication="{'class': 'SimpleStrategy', 'replication_factor': 1}",
        user=address.user,
        password=address.password,
        tls=TlsFiles(
            ca_file=str(address.tls.ca_file),
            cert_file=str(address.tls.certificate_file),
            key_file=str(address.tls.key_file),
        ),
        request_seconds=15.0,
    )


async def test_a_secured_cluster_is_reached_with_certificates_and_a_password():
    """Over TLS, with a client certificate and a password, a store opens, and every finding for `doctor` is right."""
    cql = Cql(secured_settings(), SystemClock())
    await cql.start()
    with pytest.raises(StartRefusedError, match="migrate"):
        await CassandraTransferStore.open(cql, migrating=False)
    store = await CassandraTransferStore.open(cql)
    assert await store.accept([proposal(transfer())]) == [Accepted()]
    findings = await (await CassandraTransferStore.open(cql, migrating=False)).check()
    assert [name for name, ok, _ in findings if not ok] == []
    await cql.define(f"DROP KEYSPACE {cql.settings.keyspace}")
    await cql.close()


@pytest.mark.parametrize("wrong", [{"password": "other"}, {"tls": TlsFiles(ca_file="missing.pem")}])
async def test_a_start_that_is_refused_says_what_to_do(wrong):
    """A start with a wrong password or missing certificates is refused, and no password is shown."""
    with pytest.raises(StartRefusedError, match=r"check user and password|cannot be read") as refused:
        await Cql(replace(secured_settings(), **wrong), SystemClock()).start()
    assert "other" not in str(refused.value)


async def test_lost_answers_are_unknown(stack):
    """A call without answers is unavailable if it has written only hints, and otherwise its outcome is unknown."""

    class Silent:
        def execute_async(self, _request):
            raise OperationTimedOut

    stack.connection.put_before(Silent())
    with pytest.raises(Unavailable):
        await stack.store.get([1])
    with pytest.raises(Unavailable):
        await stack.store.accept([proposal(transfer())])
    with pytest.raises(OutcomeUnknown):
        await stack.store.move_reader("r", 1)


# The audit chain.


@pytest.fixture
async def chain():
    opened = await CassandraOperationsStack.opened()
    yield opened
    await opened.close()


def act(number):
    return AuditEntry(
        at=number, actor="ops:mary", action="void", subject=str(number), reason="r", outcome="done", evidence="{}"
    )


COPY = (
    "INSERT INTO #operations_audit (bucket, number, at, actor, action, subject, reason, outcome, evidence, previous,"
    " digest) VALUES (0, 6, 5, 'ops:mary', 'void', '5', 'r', 'done', '{}', 'x', 'x')"
)


@pytest.mark.parametrize(
    ("tampering", "broken_at"),
    [
        *[
            (f"UPDATE #operations_audit SET {column} = 'forged' WHERE bucket = 0 AND number = 3", 3)
            for column in ("actor", "action", "subject", "reason", "outcome", "evidence", "previous", "digest")
        ],
        ("UPDATE #operations_audit SET at = 9 WHERE bucket = 0 AND number = 3", 3),
        ("DELETE FROM #operations_audit WHERE bucket = 0 AND number = 1", 1),
        ("DELETE FROM #operations_audit WHERE bucket = 0 AND number = 3", 3),
        ("DELETE FROM #operations_audit WHERE bucket = 0 AND number = 5", 5),
        ("DELETE FROM #operations_audit WHERE bucket = 0", 1),
        ("UPDATE #operations_head SET number = 4 WHERE one = 1 IF EXISTS", 5),
        ("UPDATE #operations_head SET digest = 'x' WHERE one = 1 IF EXISTS", 5),
        ("DELETE FROM #operations_head WHERE one = 1 IF EXISTS", 6),
        (COPY, 6),
    ],
)
async def test_tampering_is_detected(chain, tampering, broken_at):
    """Editing, deleting, inserting or truncating past the adapter is detected at the first entry affected (G14)."""
    operations = chain.open()
    for number in range(1, 6):
        await operations.append_audit(act(number))
    assert await operations.verify_audit() is None
    await chain.tamper(tampering)
    assert await operations.verify_audit() == broken_at


async def test_a_removed_end_stays_detected(chain):
    """An append after the end was cut off does not repair the chain, and without a head nothing is appended (G14)."""
    operations = chain.open()
    for number in range(1, 4):
        await operations.append_audit(act(number))
    await chain.tamper("DELETE FROM #operations_audit WHERE bucket = 0 AND number = 3")
    assert await operations.append_audit(act(4)) == 4
    assert await operations.verify_audit() == 3
    await chain.tamper("DELETE FROM #operations_head WHERE one = 1 IF EXISTS")
    with pytest.raises(Unavailable):
        await operations.append_audit(act(5))
