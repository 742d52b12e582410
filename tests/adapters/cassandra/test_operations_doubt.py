"""What the CQL operations make of conditional writes without an answer: an act and its entry are there once."""

import pytest

from contracts.cassandra_sessions import CommitsTooFew, GoneAfter, LosesFirst, Meanwhile
from contracts.cassandra_stores import CassandraOperationsStack
from internal_transfer.domain.rules import Policy
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable
from internal_transfer.ports.operations import AuditEntry, Report

MOVES_HEAD = "SET number = ?, digest = ?"


def act(actor):
    """A privileged act of somebody."""
    return AuditEntry(at=1, actor=actor, action="stop", subject="all", reason="r", outcome="decided")


@pytest.fixture
async def stack():
    opened = await CassandraOperationsStack.opened()
    yield opened
    await opened.close()


@pytest.fixture
async def faulty(stack):
    """The connection of another process, before which a faulty session is put, and its operations."""
    cql = await stack.keyspace.session(System.OPERATIONS)
    operations = stack.open_on(cql)
    yield cql, operations
    await cql.close()


async def actors(operations):
    """Who acted, by the number of the entry; the chain holds."""
    assert await operations.verify_audit() is None
    return [link.entry.actor for link in await operations.audit(after=0, most=9)]


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("others", [0, 1, 2])
async def test_an_entry_without_an_answer_is_in_the_chain_once(stack, faulty, executed, others):
    """Whether the lost write was carried out or not, and however many others have appended since, the act's entry is in
    the chain once, and its own number is answered.
    """
    cql, operations = faulty
    elsewhere = stack.open()

    async def meanwhile():
        for _ in range(others):
            await elsewhere.append_audit(act("other"))

    cql.clock = Meanwhile(meanwhile)
    cql._session = LosesFirst(cql._session, MOVES_HEAD, executed=executed)
    number = await operations.append_audit(act("mine"))
    assert cql._session.lost
    assert number == (1 if executed else 1 + others)
    who = await actors(elsewhere)
    assert who == (["mine", *["other"] * others] if executed else [*["other"] * others, "mine"])


@pytest.mark.parametrize(("executed", "others"), [(True, True), (True, False), (False, True), (False, False)])
async def test_a_policy_without_an_answer_is_told_as_it_was(stack, faulty, executed, others):
    """A change of the policy whose answer is lost is told as made where it was, even if another one has followed, and
    as overtaken only where another one was made in its place.
    """
    cql, operations = faulty
    elsewhere = stack.open()

    async def meanwhile():
        if others:
            await elsewhere.change_policy(await elsewhere.policy(), act("other"))

    cql.clock = Meanwhile(meanwhile)
    cql._session = LosesFirst(cql._session, MOVES_HEAD, executed=executed)
    number = await operations.change_policy(Policy(stopped=True), act("mine"))
    is_overtaken = others and not executed
    assert number == (None if is_overtaken else 1)
    now = await elsewhere.policy()
    assert (now.stopped, now.version) == (not is_overtaken, 1 + (others and executed))
    assert await actors(elsewhere) == ["mine"] * (not is_overtaken) + ["other"] * others


async def test_what_is_decided_but_told_as_failed_is_done_once(stack, faulty):
    """Every conditional write is decided and then fails at its commit, for too few replicas: entries, policy and pins
    are there, each entry once.
    """
    cql, operations = faulty
    front = cql._session = CommitsTooFew(cql._session)
    assert await operations.append_audit(act("one")) == 1
    assert await operations.change_policy(Policy(stopped=True), act("two")) == 2
    assert await operations.pin({"asset.USDT": "2"}) == {}
    assert front.failed >= 5
    elsewhere = stack.open()
    assert await actors(elsewhere) == ["one", "two"]
    assert (await elsewhere.policy()).stopped
    assert await elsewhere.pins() == {"asset.USDT": "2"}


async def test_a_report_without_an_answer_is_kept_under_the_next_number(stack, faulty):
    """Where nobody can tell whose a number is, the report takes another; the gap hides it from nobody."""
    cql, operations = faulty
    cql._session = LosesFirst(cql._session, "operations_report_head SET number", executed=True)
    report = Report(at=1, clean=True, items="[]")
    assert await operations.save_report(report) == 2
    assert await stack.open().last_report() == report


async def test_an_act_that_fails_halfway_says_so(stack, faulty):
    """Wherever an append loses the cluster, `Unavailable` is told only where the entry is not in the chain, and later
    it is unknown; both are met on the way to the end.
    """
    cql, operations = faulty
    session = cql._session
    elsewhere = stack.open()
    told, length = set(), 0
    for requests in range(20):
        cql._session = GoneAfter(session, requests)
        try:
            await operations.append_audit(act("mine"))
        except Unavailable:
            told.add(Unavailable)
            assert len(await elsewhere.audit(after=0, most=99)) == length
        except OutcomeUnknown:
            told.add(OutcomeUnknown)
        else:
            assert told == {Unavailable, OutcomeUnknown}
            return
        length = len(await elsewhere.audit(after=0, most=99))
    pytest.fail("an append takes fewer requests than that")
