"""What the PostgreSQL store promises beyond the contract: several processes at once, broken connections, time-outs.

A second pool stands for a second process, because the two share only the database.
"""

import asyncio
import contextlib
import random
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec.structs import replace

import real_servers
from contracts.postgresql_schemas import PostgresqlSchema
from contracts.silent_proxy import SilentProxy
from contracts.transfer_stores import PostgresqlStore
from internal_transfer.adapters.postgresql import pool
from internal_transfer.adapters.postgresql.migration import migrate
from internal_transfer.adapters.postgresql.transfer_rows import proposal_columns
from internal_transfer.adapters.postgresql.transfer_statements import Statements
from internal_transfer.conformance.transfer_store.transfers import DAY, NOON, proposal, step, transfer
from internal_transfer.domain.account import Account
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.transfer_store import Accepted, Change, DailyLimitExceeded, HistoryQuery, KeyTaken

PENDING, SUCCESS, FAILED = Status.PENDING, Status.SUCCESS, Status.FAILED


@pytest.fixture
async def schema():
    return await PostgresqlSchema.emptied()


@pytest.fixture
async def stacks(schema):
    """Two processes on one database."""
    both = [await PostgresqlStore(schema).start() for _ in range(2)]
    yield both
    for each in both:
        await each.close()


@pytest.fixture
def stores(stacks):
    return [each.store for each in stacks]


@contextlib.asynccontextmanager
async def hand(schema):
    """A connection past the service, as an administrator has it."""
    connection = await schema.connect()
    try:
        yield connection
    finally:
        connection.terminate()


@contextlib.asynccontextmanager
async def accepting(schema, *transfers):
    """A process that has accepted transfers and not yet committed; run COMMIT on the connection to commit them."""
    async with hand(schema) as connection:
        await connection.execute("BEGIN")
        columns = proposal_columns([proposal(each) for each in transfers])
        row = await connection.fetchrow(Statements(schema.settings.schema).accept, *columns)
        assert row[0] == "A" * len(transfers)
        yield connection


async def until(connection, query, *arguments):
    """Repeats the query until it returns true."""
    while not await connection.fetchval(query, *arguments):
        pass


def waiting_for_a_lock(schema):
    return (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        f" AND query LIKE '%{schema.settings.schema}%'"
    )


# Several processes at once.


async def test_of_racing_accepts_of_one_key_one_wins(stores):
    """Twenty proposals for each of ten keys, from two processes at once, leave one transfer per key (G6)."""
    calls = [
        stores[n % 2].accept([proposal(transfer(n * 10 + key, key=f"k{key}")) for key in random.sample(range(10), 10)])
        for n in range(20)
    ]
    outcomes = [outcome for batch in await asyncio.gather(*calls) for outcome in batch]
    assert outcomes.count(Accepted()) == 10
    claims = await stores[0].by_keys([("ada", f"k{key}") for key in range(10)])
    assert {each.transfer.id for each in outcomes if isinstance(each, KeyTaken)} == {
        each.transfer.id for each in claims
    }
    assert await stores[1].daily_used("ada", "USDT", DAY) == 1_000
    assert len((await stores[1].history(HistoryQuery(owner="ada", most=99))).transfers) == 10


async def test_a_daily_limit_holds_across_processes(stores):
    """Of two hundred transfers of 7 units that race for 100 units exactly fourteen are accepted (G13)."""
    calls = [
        stores[n % 2].accept([proposal(transfer(n * 10 + i, amount=7), daily_units=100) for i in range(10)])
        for n in range(20)
    ]
    outcomes = [outcome for batch in await asyncio.gather(*calls) for outcome in batch]
    assert outcomes.count(Accepted()) == 14
    assert set(outcomes) == {Accepted(), DailyLimitExceeded(2)} | {
        each for each in outcomes if isinstance(each, DailyLimitExceeded) and each.remaining_units < 7
    }
    assert await stores[0].daily_used("ada", "USDT", DAY) == 98


async def test_racing_scanners_lease_each_transfer_once(stores):
    """Scanners of two processes share the due transfers: each is leased, and none twice."""
    batch = [transfer(n, due_at=NOON) for n in range(60)]
    await stores[0].accept([proposal(each) for each in batch])
    calls = [stores[n % 2].lease_due(now_ms=NOON, lease_ms=1_000, most=7) for n in range(20)]
    leased = [each.id for part in await asyncio.gather(*calls) for each in part]
    leased += [each.id for each in await stores[0].lease_due(now_ms=NOON, lease_ms=1_000, most=60)]
    assert sorted(leased) == [each.id for each in batch]


async def test_of_racing_changes_one_is_recorded(stores):
    """Of ten changes to one revision, from two processes at once, one is recorded, with one event (G8, G11)."""
    first = transfer()
    await stores[0].accept([proposal(first)])
    calls = [stores[n % 2].record([step(first, (PENDING, FAILED)[n // 2 % 2])]) for n in range(10)]
    recorded = [each for (each,) in await asyncio.gather(*calls) if each is not None]
    assert await stores[0].get([first.id]) == recorded
    assert [len(events) for events in await stores[1].events([first.id])] == [2]


async def test_batches_in_opposite_orders_do_not_deadlock(stores, monkeypatch):
    """Owners, transfers and daily sums are locked in the same order, however a batch is ordered, so nothing fails
    although no call is repeated.
    """
    monkeypatch.setattr(pool, "ATTEMPTS_MAX", 1)
    for number in range(10):
        batch = [transfer(number * 20 + n, owner=f"o{n}") for n in range(10)]
        more = [transfer(number * 20 + 10 + n, owner=f"o{n}") for n in reversed(range(10))]
        calls = [stores[n].accept([proposal(each) for each in part]) for n, part in enumerate((batch, more))]
        assert await asyncio.gather(*calls) == [[Accepted()] * 10] * 2
        failing = [step(each, FAILED) for each in batch]
        renewing = [Change(1, replace(each, attempts=1)) for each in reversed(batch)]
        one, two = await asyncio.gather(stores[0].record(failing), stores[1].record(renewing))
        assert [each is None for each in one] == [each is not None for each in reversed(two)]


async def test_accounts_are_numbered_once_across_processes(stores):
    """Processes that register the same new accounts at once give each one number, without gaps."""
    accounts = [Account(f"o{n}", "spot", "USDT") for n in range(30)]
    calls = [stores[n % 2].register(random.sample(accounts, 20)) for n in range(10)]
    numbered = {(each.account, each.number) for part in await asyncio.gather(*calls) for each in part}
    numbered |= {(each.account, each.number) for each in await stores[0].register(accounts)}
    assert sorted(number for _, number in numbered) == list(range(1, 31))


async def test_nodes_are_leased_once_across_processes(stores):
    """Processes that start at once lease different node numbers."""
    calls = [stores[n % 2].lease_node(f"h{n}", now_ms=NOON, lease_ms=1_000) for n in range(20)]
    assert sorted(await asyncio.gather(*calls)) == list(range(20))


# The feed and the history when a commit becomes visible late (G11).


async def test_a_late_commit_is_not_skipped(schema, stores):
    """Our reader meets a commit that drew its number first and became visible second.

    The naive reader, which goes by the commits' own numbers, misses it, so the danger is real.
    """
    late, early = transfer(1), transfer(2, owner="bob")
    by_number = "SELECT transfer_id, commit FROM transfer_event WHERE commit > $1 ORDER BY commit"
    async with accepting(schema, late) as slow, hand(schema) as naive:
        await stores[0].accept([proposal(early)])
        ((sequence, event),) = await stores[0].feed(0, 10)
        assert event.transfer_id == early.id
        ((naive_id, number),) = await naive.fetch(by_number, 0)
        assert naive_id == early.id
        await slow.execute("COMMIT")
        assert [event.transfer_id for _, event in await stores[1].feed(sequence, 10)] == [late.id]
        assert await naive.fetch(by_number, number) == []
    assert await stores[0].feed(0, 10) == await stores[1].feed(0, 10)


async def test_a_reader_waits_for_one_that_is_numbering(schema, stores):
    """While a reader has numbered commits but not yet committed, another reader waits, and then numbers only the rest:
    no number is given twice, and a commit that became visible in between follows what was read before it.
    """
    late, early = transfer(1), transfer(2, owner="bob")
    numbering = f'SELECT sequence, transfer_id FROM "{schema.settings.schema}".read_feed(0, 9)'
    async with accepting(schema, late) as slow, hand(schema) as first, hand(schema) as other:
        await stores[0].accept([proposal(early)])
        await first.execute("BEGIN")
        ((sequence, transfer_id),) = await first.fetch(numbering)
        assert transfer_id == early.id
        await slow.execute("COMMIT")
        async with asyncio.TaskGroup() as group:
            second = group.create_task(stores[0].feed(0, 9))
            await until(other, waiting_for_a_lock(schema))
            await first.execute("COMMIT")
    assert [event.transfer_id for _, event in second.result()] == [early.id, late.id]
    assert second.result()[0][0] == sequence
    assert await stores[1].feed(0, 9) == second.result()


async def test_readers_at_once_read_one_feed(stores):
    """While two processes write, every reader that continues from its last number gets the same sequence: each event
    once, and the events of a transfer in order.
    """
    written = asyncio.Event()

    async def write(store, base):
        for number in range(8):
            batch = [transfer(base + number * 4 + n, owner=f"o{n}") for n in range(4)]
            assert await store.accept([proposal(each) for each in batch]) == [Accepted()] * 4
            batch = await store.record([step(each, PENDING) for each in batch])
            await store.record([step(each, SUCCESS) for each in batch])

    async def read(store):
        seen, after = [], 0
        while True:
            is_last = written.is_set()
            page = await store.feed(after, 5)
            seen += page
            after = page[-1][0] if page else after
            if is_last and not page:
                return seen

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read(store)) for store in (*stores, *stores)]
        await asyncio.gather(write(stores[0], 0), write(stores[1], 1_000))
        written.set()
    feeds = [reader.result() for reader in readers]
    assert all(feed == feeds[0] for feed in feeds)
    versions = {}
    for _, event in feeds[0]:
        versions.setdefault(event.transfer_id, []).append(event.version)
    assert len(versions) == 64
    assert all(each == [1, 2, 3] for each in versions.values())


async def test_a_walk_is_not_disturbed_by_a_commit_that_comes_late(schema, stores):
    """A transfer that commits after the first page is not in the walk, although its accept began before; and a later
    accept of the same owner waits for it, so that accept numbers rise in the order of commits.
    """
    first, late, last = transfer(1), transfer(2), transfer(3)
    await stores[0].accept([proposal(first)])
    async with accepting(schema, late) as slow, hand(schema) as other, asyncio.TaskGroup() as group:
        waiting = group.create_task(stores[0].accept([proposal(last)]))
        await until(other, waiting_for_a_lock(schema))
        page = await stores[1].history(HistoryQuery(owner="ada", most=9))
        assert page.transfers == [first]
        await slow.execute("COMMIT")
        assert await waiting == [Accepted()]
        again = await stores[1].history(HistoryQuery(owner="ada", most=9, until=page.until))
    assert again.transfers == [first]
    newest = await stores[1].history(HistoryQuery(owner="ada", most=9))
    assert [each.id for each in newest.transfers] == [last.id, late.id, first.id]


# Broken connections, time-outs, full queues.


async def test_connections_that_were_ended_at_rest_are_replaced(schema, stacks):
    """After the server has ended all idle connections, the next reads and writes succeed."""
    stack = stacks[0]
    all_at_work, ended = asyncio.Barrier(4), asyncio.Queue()

    async def backend(connection):
        await all_at_work.wait()
        connection.add_termination_listener(ended.put_nowait)
        return connection.get_server_pid()

    backends = await asyncio.gather(*[stack.pool.read(System.STORE, backend) for _ in range(4)])
    async with hand(schema) as killer:
        for process in backends:
            await killer.execute(f"SELECT pg_terminate_backend({process})")
            await ended.get()
    assert await stack.store.accept([proposal(transfer())]) == [Accepted()]
    assert await stack.store.get([transfer().id]) == [transfer()]


async def test_a_connection_that_was_idle_for_long_is_replaced(stacks, monkeypatch):
    """A connection is used again by the next call, but not after it was idle for longer than `IDLE_SECONDS`."""

    async def backend(connection):
        return connection.get_server_pid()

    first = await stacks[0].pool.read(System.STORE, backend)
    assert await stacks[0].pool.read(System.STORE, backend) == first
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.0)
    assert await stacks[0].pool.read(System.STORE, backend) != first


async def end_waiting(schema, connection):
    """Ends the backend that waits for a lock, as an administrator or a crash does."""
    await until(connection, waiting_for_a_lock(schema))
    await connection.execute(
        waiting_for_a_lock(schema).replace("count(*) > 0", "pg_terminate_backend(pid)"),
    )


async def test_a_write_whose_backend_ends_is_unknown_and_nothing_is_doubled(schema, stores):
    """An accept whose backend ends has an unknown outcome; a retry under the same key leaves one transfer, which counts
    against the daily limit once.
    """
    blocker, first = transfer(1), transfer(2)
    async with accepting(schema, blocker) as slow, hand(schema) as killer, asyncio.TaskGroup() as group:
        call = group.create_task(_outcome(stores[0].accept([proposal(first)])))
        await end_waiting(schema, killer)
        assert isinstance(await call, OutcomeUnknown)
        await slow.execute("COMMIT")
    assert await stores[0].by_keys([("ada", first.key)]) == [None]
    assert await stores[0].accept([proposal(first)]) == [Accepted()]
    assert await stores[1].accept([proposal(first)]) == [KeyTaken(first, b"content")]
    assert await stores[0].daily_used("ada", "USDT", DAY) == 200


async def test_a_settled_look_up_waits_for_accepts_that_are_about_to_commit(schema, stores):
    """A settled look-up by a caller who lost the answer of an accept waits for its commit and finds the transfer; the
    cheap look-up does not wait.
    """
    late = transfer(1)
    async with accepting(schema, late) as slow, hand(schema) as other, asyncio.TaskGroup() as group:
        settled = group.create_task(stores[0].by_keys([("ada", late.key)]))
        await until(other, "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'ShareLock' AND NOT granted")
        assert await stores[1].by_keys([("ada", late.key)], settled=False) == [None]
        await slow.execute("COMMIT")
        assert await settled == [KeyTaken(late, b"content")]


async def test_statements_find_rows_by_indexes_though_they_were_planned_on_empty_tables():
    """A connection that planned its statements while the tables were empty still reads only the rows that it is asked
    for after the tables have grown.
    """
    fresh = PostgresqlSchema.fresh()
    assert migrate(fresh.settings) > 0
    stack = await PostgresqlStore(fresh.with_settings(connections=1)).start()
    store, statements = stack.store, Statements(fresh.settings.schema)
    for _ in range(10):
        await store.get([1])
        await store.by_keys([("ada", "none")], settled=False)
    for batch in range(15):
        await store.accept([proposal(transfer(n)) for n in range(batch * 200 + 1, batch * 200 + 201)])

    async def count(connection):
        # Flushes what this connection has counted so far, so that only the rows of this transaction are counted.
        await connection.execute("SELECT pg_stat_force_next_flush()")
        async with connection.transaction():
            await connection.fetch(statements.get, [1, 2])
            await connection.fetch(statements.by_keys, ["ada"], [transfer(3).key])
            await connection.fetchrow(statements.accept, *proposal_columns([proposal(transfer(4_000))]))
            return await connection.fetchval(
                "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::integer"
                " FROM pg_stat_xact_user_tables WHERE schemaname = $1",
                fresh.settings.schema,
            )

    # Two transfers by id, a key and its transfer, and the day's sum, which is read and then updated.
    assert await stack.pool.read(System.STORE, count) < 20
    await stack.close()


async def test_a_commit_whose_answer_is_lost_is_unknown_and_is_found_by_its_key(schema, stores):
    """The connection breaks after the server's commit and before its answer: the outcome is unknown, the caller finds
    the transfer by its key, and can repeat accept and record without a second effect.
    """
    parts = urlsplit(schema.settings.url)
    async with SilentProxy(parts.port) as proxy:
        url = schema.settings.url.replace(f":{parts.port}", f":{proxy.port}")
        stack = await PostgresqlStore(schema.with_settings(url=url)).start()
        first, started = transfer(), step(transfer(), PENDING)
        for number, call in enumerate((stack.store.accept([proposal(first)]), stack.store.record([started])), 8):
            # A connection prepares a statement at its first use; from then on a call is one message and one answer.
            other = transfer(number, owner="bob")
            await stack.store.accept([proposal(other)])
            await stack.store.record([step(other, FAILED)])
            proxy.silent = True
            proxy.dropped.clear()
            async with asyncio.TaskGroup() as group:
                outcome = group.create_task(_outcome(call))
                await proxy.dropped.wait()
                while not await _is_committed(stores[0], first.id, call.__name__):
                    pass
                proxy.cut()
            assert isinstance(outcome.result(), OutcomeUnknown)
            proxy.silent = False
        (found,) = await stack.store.by_keys([("ada", first.key)])
        assert found == KeyTaken(replace(started.after, revision=2), b"content")
        assert await stack.store.accept([proposal(first)]) == [found]
        assert await stack.store.record([started]) == [None]
        assert await stack.store.daily_used("ada", "USDT", DAY) == 100
        feed = [event for _, event in await stack.store.feed(0, 9)]
        assert [event.version for event in feed if event.transfer_id == first.id] == [1, 2]
        await stack.close()


async def _is_committed(store, transfer_id, call):
    """Tells whether the commit of the call is visible to another process."""
    (found,) = await store.get([transfer_id])
    return found is not None and (call == "accept" or found.status is PENDING)


async def test_a_change_whose_backend_ends_is_unknown_and_recorded_once(schema, stores):
    """A change whose backend ends has an unknown outcome; repeated, it is recorded once with one event."""
    first = transfer()
    await stores[0].accept([proposal(first)])
    async with hand(schema) as slow, hand(schema) as killer, asyncio.TaskGroup() as group:
        await slow.execute(f"BEGIN; SELECT FROM transfer WHERE id = {first.id} FOR UPDATE")
        call = group.create_task(_outcome(stores[0].record([step(first, PENDING)])))
        await end_waiting(schema, killer)
        assert isinstance(await call, OutcomeUnknown)
        await slow.execute("COMMIT")
    (recorded,) = await stores[0].record([step(first, PENDING)])
    assert await stores[1].get([first.id]) == [recorded]
    assert [each.version for each in (await stores[1].events([first.id]))[0]] == [1, 2]


async def _outcome(call):
    """What a call returns or raises."""
    try:
        return await call
    except (Unavailable, OutcomeUnknown) as error:
        return error


async def test_a_read_whose_backend_ends_is_made_again(stacks):
    """A read that loses its connection is repeated on another one."""
    stack = stacks[0]
    tries = []

    async def read(connection):
        tries.append(connection.get_server_pid())
        if len(tries) == 1:
            await connection.fetchval(f"SELECT pg_terminate_backend({tries[0]})")
        return await connection.fetchval("SELECT 7")

    assert await stack.pool.read(System.STORE, read) == 7
    assert len(tries) == 2


async def test_a_deadlock_is_made_again(stacks):
    """A call that the server rolls back in favour of another one is repeated until it succeeds, by the pool."""
    tries = []

    async def write(connection):
        tries.append(1)
        if len(tries) < 3:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = 'deadlock_detected'; END $$")
        return len(tries)

    assert await stacks[0].pool.write(System.STORE, write) == 3


async def test_an_id_taken_by_an_open_commit_is_refused(schema, stores):
    """If another owner's accept under way has the id, an accept waits for its commit and then says the id is taken."""
    async with accepting(schema, transfer(1)) as slow, hand(schema) as other, asyncio.TaskGroup() as group:
        call = group.create_task(
            stores[0].accept([proposal(transfer(1, owner="bob")), proposal(transfer(2, owner="b"))])
        )
        await until(other, waiting_for_a_lock(schema))
        await slow.execute("COMMIT")
        outcomes = await call
    assert [type(each).__name__ for each in outcomes] == ["IdTaken", "Accepted"]
    assert await stores[0].daily_used("bob", "USDT", DAY) == 0


async def test_a_statement_that_takes_too_long_is_taken_back(schema):
    """The server cancels a slow statement before the client's deadline, so it is certain that nothing was done."""
    stack = await PostgresqlStore(schema.with_settings(deadline_seconds=2.0, connect_seconds=1.0)).start()
    async with accepting(schema, transfer(1)):
        with pytest.raises(Unavailable, match="too long"):
            await stack.store.accept([proposal(transfer(2))])
    assert await stack.store.accept([proposal(transfer(2))]) == [Accepted()]
    await stack.close()


async def test_a_call_without_an_answer_is_unknown(schema):
    """Behind PgBouncer no statement time-out can be set; the client's deadline then leaves the outcome unknown."""
    settings = {"deadline_seconds": 0.7, "connect_seconds": 0.7, "pooled": True}
    stack = await PostgresqlStore(schema.with_settings(**settings)).start()
    async with accepting(schema, transfer(1)):
        with pytest.raises(OutcomeUnknown, match="no answer"):
            await stack.store.accept([proposal(transfer(2))])
    outcomes = await stack.store.accept([proposal(transfer(2))])
    assert outcomes in ([Accepted()], [KeyTaken(transfer(2), b"content")])
    await stack.close()


async def test_a_full_queue_refuses_at_once(schema):
    """A call is refused at once, with nothing done, when all connections and all places to wait are taken."""
    stack = await PostgresqlStore(schema.with_settings(connections=1, waiting_max=1)).start()
    async with accepting(schema, transfer(1)) as slow, hand(schema) as other, asyncio.TaskGroup() as group:
        at_work = group.create_task(stack.store.accept([proposal(transfer(2))]))
        await until(other, waiting_for_a_lock(schema))
        in_line = group.create_task(stack.store.accept([proposal(transfer(3))]))
        await other.execute("SELECT 1")
        with pytest.raises(Unavailable, match="waiting"):
            await stack.store.accept([proposal(transfer(4))])
        await slow.execute("COMMIT")
        assert await at_work == await in_line == [Accepted()]
    assert await stack.store.get([transfer(4).id]) == [None]
    await stack.close()


async def test_a_call_that_gets_no_connection_in_time_is_not_made(schema):
    """A call whose deadline passes while it waits for a connection is unavailable: nothing was sent."""
    lent, refused = asyncio.Event(), asyncio.Event()

    async def keeps_its_connection(_connection):
        lent.set()
        with contextlib.suppress(asyncio.CancelledError):
            await refused.wait()
        await refused.wait()

    stack = await PostgresqlStore(
        schema.with_settings(connections=1, deadline_seconds=0.7, connect_seconds=0.7)
    ).start()
    async with asyncio.TaskGroup() as group:
        group.create_task(stack.pool.read(System.STORE, keeps_its_connection))
        await lent.wait()
        with pytest.raises(Unavailable, match="no connection became free"):
            await stack.store.accept([proposal(transfer())])
        refused.set()
    assert await stack.store.get([transfer().id]) == [None]
    await stack.close()


async def test_closing_lets_calls_under_way_end(schema):
    """A pool that is closed refuses new calls, and ends its connections only when the last call is answered."""
    stack = await PostgresqlStore(schema.with_settings(connections=1)).start()
    async with accepting(schema, transfer(1)) as slow, hand(schema) as other, asyncio.TaskGroup() as group:
        at_work = group.create_task(stack.store.accept([proposal(transfer(2))]))
        in_line = group.create_task(stack.store.accept([proposal(transfer(3))]))
        await until(other, waiting_for_a_lock(schema))
        await stack.close()
        with pytest.raises(Unavailable, match="stopping"):
            await stack.store.get([transfer(1).id])
        await slow.execute("COMMIT")
        assert await at_work == await in_line == [Accepted()]


async def test_a_refusal_that_outlasts_the_call_is_shown(stacks):
    """After the server refused a write because its disk is full, the pool says so for readiness."""
    pool = stacks[0].pool
    assert pool.failure is None

    async def write(connection):
        await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$")

    with pytest.raises(Unavailable, match="disk is full"):
        await pool.write(System.STORE, write)
    assert "disk is full" in pool.failure


async def test_a_cancelled_call_does_not_disturb_the_next(schema):
    """A cancelled call loses its connection; the next call gets a new one, and the right answer."""
    stack = await PostgresqlStore(schema.with_settings(connections=1)).start()
    async with accepting(schema, transfer(1)) as slow, hand(schema) as other:
        call = asyncio.ensure_future(stack.store.accept([proposal(transfer(2))]))
        await until(other, waiting_for_a_lock(schema))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await stack.store.get([transfer(9).id]) == [None]
        await slow.execute("COMMIT")
    await stack.close()


async def test_an_argument_that_cannot_be_sent_is_a_bug(stacks):
    """The driver's error for a value that it cannot encode is raised as it is, and the next call succeeds."""
    with pytest.raises(asyncpg.DataError, match="int64"):
        await stacks[0].store.get([2**63])
    assert await stacks[0].store.get([7]) == [None]


async def test_what_was_acknowledged_survives_kill_9():
    """While the server is down calls are unavailable; after its restart everything acknowledged is there (G9)."""
    with real_servers.own("postgresql") as server:
        stack = await PostgresqlStore(PostgresqlSchema.made_on(server.address())).start()
        batch = [transfer(n) for n in range(50)]
        assert await stack.store.accept([proposal(each) for each in batch]) == [Accepted()] * 50
        server.kill()
        assert isinstance(await _outcome(stack.store.get([batch[0].id])), Unavailable)
        assert isinstance(await _outcome(stack.store.accept([proposal(transfer(77))])), Unavailable)
        server.start()
        assert await stack.store.get([each.id for each in batch]) == batch
        assert await stack.store.get([transfer(77).id]) == [None]
        assert len(await stack.store.feed(0, 99)) == 50
        await stack.close()
