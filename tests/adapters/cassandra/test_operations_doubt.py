"""Conditional writes without an answer in the CQL operations: an act and its entry are on record once."""

import pytest

from contracts.cassandra_sessions import CommitsTooFew, GoneAfter, LosesFirst, Meanwhile
from contracts.cassandra_stores import CassandraOperationsStack
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.operations import AuditEntry, Report

MOVES_HEAD = "SET number = ?, digest = ?"


def act(actor):
    """The audit entry of a privileged act."""
    return AuditEntry(at=1, actor=actor, action="stop", subject="all", reason="r", outcome="decided")


@pytest.fixture
async def stack():
    opened = await CassandraOperationsStack.opened()
    yield opened
    await opened.close()


@pytest.fixture
async def faulty(stack):
    """Another process, to whose connection a test adds faults, and its operations."""
    connection = await stack.keyspace.connect(System.OPERATIONS)
    yield connection, stack.open_on(connection.cql)
    await connection.cql.close()


async def actors(operations):
    """The actor of each entry, by number, of a chain that is intact."""
    assert await operations.verify_audit() is None
    return [link.entry.actor for link in await operations.audit(after=0, most=9)]


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("others", [0, 1, 2])
async def test_an_entry_without_an_answer_is_in_the_chain_once(stack, faulty, executed, others):
    """An append without an answer puts its entry in the chain once and returns its number, whether or not the lost
    write was executed, and however many others have appended since.
    """
    connection, operations = faulty
    elsewhere = stack.open()

    async def meanwhile():
        for _ in range(others):
            await elsewhere.append_audit(act("other"))

    connection.cql.clock = Meanwhile(meanwhile)
    front = connection.put_before(LosesFirst(connection.driver, MOVES_HEAD, executed=executed))
    number = await operations.append_audit(act("mine"))
    assert front.lost
    assert number == (1 if executed else 1 + others)
    who = await actors(elsewhere)
    assert who == (["mine", *["other"] * others] if executed else [*["other"] * others, "mine"])


@pytest.mark.parametrize(("executed", "others"), [(True, True), (True, False), (False, True), (False, False)])
async def test_a_policy_change_without_an_answer_is_reported_as_it_was(stack, faulty, executed, others):
    """A policy change whose answer is lost is reported as made if it was, even if another one has followed, and as
    overtaken only if another one was made in its place.
    """
    connection, operations = faulty
    elsewhere = stack.open()

    async def meanwhile():
        if others:
            await elsewhere.change_policy(await elsewhere.policy(), act("other"))

    connection.cql.clock = Meanwhile(meanwhile)
    connection.put_before(LosesFirst(connection.driver, MOVES_HEAD, executed=executed))
    number = await operations.change_policy(Policy(stopped=True), act("mine"))
    is_overtaken = others and not executed
    assert number == (None if is_overtaken else 1)
    now = await elsewhere.policy()
    assert (now.stopped, now.version) == (not is_overtaken, 1 + (others and executed))
    assert await actors(elsewhere) == ["mine"] * (not is_overtaken) + ["other"] * others


async def test_what_is_decided_but_fails_is_done_once(stack, faulty):
    """Every conditional write is decided and then fails at its commit, for lack of replicas: entries, policy and pins
    are on record, each entry once.
    """
    connection, operations = faulty
    front = connection.put_before(CommitsTooFew(connection.driver))
    assert await operations.append_audit(act("one")) == 1
    assert await operations.change_policy(Policy(stopped=True), act("two")) == 2
    assert await operations.pin({"asset.USDT": "2"}) == {}
    assert front.failed >= 5
    elsewhere = stack.open()
    assert await actors(elsewhere) == ["one", "two"]
    assert (await elsewhere.policy()).stopped
    assert await elsewhere.pins() == {"asset.USDT": "2"}


async def test_a_report_without_an_answer_is_kept_under_the_next_number(stack, faulty):
    """If it is unclear who drew a number, the report draws another one; the newest report is found despite the gap."""
    connection, operations = faulty
    connection.put_before(LosesFirst(connection.driver, "operations_report_head SET number", executed=True))
    report = Report(at=1, clean=True, items="[]")
    assert await operations.save_report(report) == 2
    assert await stack.open().last_report() == report


async def test_an_act_that_fails_halfway_says_so(stack, faulty):
    """Wherever an append loses the cluster, it is `Unavailable` only if its entry is not in the chain, and otherwise
    its outcome is unknown; both occur before the last request.
    """
    connection, operations = faulty
    elsewhere = stack.open()
    raised, length = set(), 0
    for requests in range(20):
        connection.put_before(GoneAfter(connection.driver, requests))
        try:
            await operations.append_audit(act("mine"))
        except Unavailable:
            raised.add(Unavailable)
            assert len(await elsewhere.audit(after=0, most=99)) == length
        except OutcomeUnknown:
            raised.add(OutcomeUnknown)
        else:
            assert raised == {Unavailable, OutcomeUnknown}
            return
        length = len(await elsewhere.audit(after=0, most=99))
    pytest.fail("an append takes fewer requests than that")
