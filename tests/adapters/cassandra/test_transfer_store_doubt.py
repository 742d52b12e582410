"""The CQL store in doubt: conditional writes without an answer, and calls that fail halfway."""

import pytest
from cassandra import ConsistencyLevel
from msgspec.structs import replace

from contracts.cassandra_sessions import CommitsTooFew, GoneAfter, LosesFirst, Meanwhile, Watched
from contracts.cassandra_stores import CassandraStore
from internal_transfer.adapters.cassandra.transfer_store import statements
from internal_transfer.adapters.cassandra.transfer_store.store import MIGRATIONS, CassandraTransferStore
from internal_transfer.adapters.cassandra.transfer_store.tables import Tables
from internal_transfer.conformance.transfer_store.transfers import DAY, NOON, proposal, step, transfer
from internal_transfer.domain.transfer import Status
from internal_transfer.ports.errors import OutcomeUnknown, Unavailable
from internal_transfer.ports.transfer_store import Accepted, Change, KeyTaken


@pytest.fixture
async def stack():
    opened = await CassandraStore.opened()
    yield opened
    await opened.close()


@pytest.fixture
async def faulty(stack):
    """Another process, to whose connection a test adds faults."""
    connection = await stack.keyspace.connect()
    yield Process(connection, await connection.cql.prepare(statements.ALL))
    await connection.cql.close()


class Process:
    """A process that uses the store; `driver` is the driver's session."""

    def __init__(self, connection, prepared):
        self.cql = connection.cql
        self.driver = connection.driver
        self.put_before = connection.put_before
        self._prepared = prepared
        self.claims_after = 0
        self.start_again()

    def start_again(self):
        """Forgets what the process remembered."""
        self.store = CassandraTransferStore(Tables(self.cql, self._prepared))


async def go_on(store, transfer_id):
    """Another process records the next revision, which changes no status."""
    [now] = await store.get([transfer_id])
    [recorded] = await store.record([Change(now.revision, replace(now, attempts=now.attempts + 1))])
    assert recorded is not None


@pytest.mark.parametrize("status", [Status.REQUESTING, Status.PENDING])
@pytest.mark.parametrize(
    "case",
    [
        (True, 0, "recorded"),
        (True, 1, "unknown"),
        (False, 0, "recorded"),
        (False, 1, "lost"),
        (False, 2, "unknown"),
    ],
)
async def test_a_change_without_an_answer_after_which_others_made_changes(stack, faulty, status, case):
    """A change whose answer is missing is reported as lost only if it certainly was. Once others have recorded a later
    revision it is unclear whether that follows from the change, and an operator's decision must not be called lost.
    """
    executed, others, answer = case
    each = transfer()
    assert await faulty.store.accept([proposal(each)]) == [Accepted()]

    async def meanwhile():
        for _ in range(others):
            await go_on(stack.store, each.id)

    faulty.cql.clock = Meanwhile(meanwhile)
    front = faulty.put_before(LosesFirst(faulty.driver, "IF revision = ? AND due_place = ?", executed=executed))
    change = Change(1, replace(each, attempts=7)) if status is each.status else step(each, status)
    if answer == "unknown":
        with pytest.raises(OutcomeUnknown):
            await faulty.store.record([change])
    else:
        [recorded] = await faulty.store.record([change])
        assert (recorded is None) == (answer == "lost")
    assert front.lost
    [now] = await stack.store.get([each.id])
    assert now.revision == 1 + others + (executed or answer == "recorded")
    is_done = executed or answer == "recorded"
    assert (now.status is status, now.attempts >= 7) == ((True, is_done) if status is each.status else (is_done, False))


async def test_a_change_that_was_certainly_lost_is_told_so(stack, faulty):
    """A change to a revision that is two behind, without any doubt, is reported as lost, as on every store."""
    each = transfer()
    assert await faulty.store.accept([proposal(each)]) == [Accepted()]
    for _ in range(2):
        await go_on(stack.store, each.id)
    assert await faulty.store.record([step(each, Status.PENDING)]) == [None]


async def test_what_is_decided_but_fails_is_carried_through(stack, faulty):
    """Every conditional write of an accept and of two changes is decided and then fails at its commit, for lack of
    replicas: repeated, each is found to be applied, and the transfer ends as it does without a fault.
    """
    each = transfer()
    front = faulty.put_before(CommitsTooFew(faulty.driver))
    assert await faulty.store.accept([proposal(each)]) == [Accepted()]
    [pending] = await faulty.store.record([step(each, Status.PENDING)])
    [failed] = await faulty.store.record([step(pending, Status.FAILED)])
    assert front.failed >= 5, "the claim, the transfer, two changes, and the daily sum"
    other = await stack.another()
    assert await other.get([each.id]) == [failed]
    assert await other.by_keys([("ada", each.key)]) == [KeyTaken(failed, b"content")]
    assert [event.version for _, event in await other.feed(0, 9)] == [1, 2, 3]
    assert await other.daily_used("ada", "USDT", DAY) == 0


def on_record(stack):
    """All rows that make up a transfer, without the hints at it."""
    tables = ("transfer", "transfer_key", "daily_use")
    keyspace = stack.keyspace.settings.keyspace
    return {table: sorted(map(repr, stack.keyspace.execute(f"SELECT * FROM {keyspace}.{table}"))) for table in tables}


async def leave_unfinished(stack, faulty, each):
    """A process claims a key, and reaches no node any more before its transfer is on record."""
    for requests in range(faulty.claims_after, 40):
        stack.keyspace.empty(MIGRATIONS)
        faulty.start_again()
        faulty.put_before(GoneAfter(faulty.driver, requests))
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await faulty.store.accept([proposal(each)])
        faulty.put_before(faulty.driver)
        rows = on_record(stack)
        if rows["transfer_key"]:
            assert not rows["transfer"]
            faulty.claims_after = requests
            return
    pytest.fail("an accept claims its key within 40 requests")


async def test_an_accept_that_fails_halfway_says_so(stack, faulty):
    """Wherever an accept loses the cluster, it is `Unavailable` only if nothing of the transfer is on record, and
    otherwise its outcome is unknown; both occur before the last request.
    """
    raised = set()
    each = transfer()
    for requests in range(40):
        stack.keyspace.empty(MIGRATIONS)
        before = on_record(stack)
        faulty.start_again()
        faulty.put_before(GoneAfter(faulty.driver, requests))
        try:
            assert await faulty.store.accept([proposal(each)]) == [Accepted()]
        except Unavailable:
            raised.add(Unavailable)
            assert on_record(stack) == before
        except OutcomeUnknown:
            raised.add(OutcomeUnknown)
            assert on_record(stack) != before
        else:
            assert raised == {Unavailable, OutcomeUnknown}
            return
    pytest.fail("an accept takes fewer requests than that")


@pytest.mark.parametrize("settled", [False, True])
async def test_a_look_up_that_fails_while_it_finishes_a_claim_says_so(stack, faulty, settled):
    """A look-up that meets an unfinished claim records its transfer. Wherever that loses the cluster, it is
    `Unavailable` only if the look-up has recorded nothing.
    """
    raised = set()
    each = transfer()
    for requests in range(40):
        await leave_unfinished(stack, faulty, each)
        before = on_record(stack)
        faulty.put_before(GoneAfter(faulty.driver, requests))
        try:
            [hit] = await faulty.store.by_keys([("ada", each.key)], settled=settled)
        except Unavailable:
            raised.add(Unavailable)
            assert on_record(stack) == before
        except OutcomeUnknown:
            raised.add(OutcomeUnknown)
        else:
            assert hit == KeyTaken(each, b"content")
            assert raised == {Unavailable, OutcomeUnknown}
            return
    pytest.fail("a look-up takes fewer requests than that")


@pytest.mark.parametrize("settled", [False, True])
async def test_both_kinds_of_look_up_finish_what_a_process_left(stack, faulty, settled):
    """If a process stopped between claiming a key and inserting the transfer, a look-up of either kind finds that
    transfer and puts it on record.
    """
    each = transfer()
    await leave_unfinished(stack, faulty, each)
    assert await stack.store.get([each.id]) == [None]
    assert await stack.store.by_keys([("ada", each.key)], settled=settled) == [KeyTaken(each, b"content")]
    other = await stack.another()
    assert await other.get([each.id]) == [each]
    assert await other.daily_used("ada", "USDT", DAY) == 100
    assert [event.version for _, event in await other.feed(0, 9)] == [1]


async def test_only_a_settled_look_up_reads_serially(faulty):
    """A settled look-up reads the key's row serially, and the other one with a quorum."""
    front = faulty.put_before(Watched(faulty.driver, "transfer_key"))
    keys = [("ada", "one"), ("ada", "two")]
    assert await faulty.store.by_keys(keys, settled=False) == [None, None]
    assert front.read_at == [None, None], "None is the level of the session's profile"
    profile = next(iter(faulty.driver.cluster.profile_manager.profiles.values()))
    assert profile.consistency_level == ConsistencyLevel.LOCAL_QUORUM
    assert await faulty.store.by_keys(keys) == [None, None]
    assert front.read_at[2:] == [ConsistencyLevel.LOCAL_SERIAL] * 2


async def test_accept_has_the_last_word_over_an_unsettled_look_up(stack, faulty):
    """If an unsettled look-up misses a key because another process has only claimed it, or accepts it afterwards,
    accept returns the other process's transfer.
    """
    finished, unfinished = transfer(1), transfer(2)
    await leave_unfinished(stack, faulty, unfinished)
    mine = [transfer(n, key=each.key, at=NOON + 5) for n, each in enumerate((finished, unfinished))]
    assert await stack.store.by_keys([("ada", finished.key)], settled=False) == [None]
    assert await faulty.store.accept([proposal(finished)]) == [Accepted()]
    assert await stack.store.accept([proposal(each) for each in mine]) == [
        KeyTaken(finished, b"content"),
        KeyTaken(unfinished, b"content"),
    ]
    assert await stack.store.get([each.id for each in mine]) == [None, None]
    assert await stack.store.daily_used("ada", "USDT", DAY) == 200
