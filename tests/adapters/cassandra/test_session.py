"""Conditional writes that fail in the CQL session: which are repeated, and whose outcome is unknown.

Lists of answers replace the driver's session, since no cluster fails in every way on demand.
"""

import asyncio

import pytest
from cassandra import ConsistencyLevel, InvalidRequest, OperationTimedOut, WriteTimeout, WriteType
from cassandra import Unavailable as NotEnoughReplicas
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown

from internal_transfer.adapters.cassandra.cluster import Connected, release_of
from internal_transfer.adapters.cassandra.session import Cql, Decided
from internal_transfer.adapters.cassandra.settings import CqlSettings
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.ports.errors import OutcomeUnknown, Unavailable

LATE = WriteTimeout("late", write_type=WriteType.CAS)
TOO_FEW = NotEnoughReplicas("few", consistency=ConsistencyLevel.QUORUM, required_replicas=2, alive_replicas=1)
SILENT = OperationTimedOut()
CUT = ConnectionShutdown("cut")
NOBODY = NoHostAvailable("nobody", {})
NO_TABLE = InvalidRequest("no such table")


class Hasty(SystemClock):
    """A clock on which waiting takes no time."""

    async def sleep(self, _seconds):
        """Returns at once."""


class Filling(SystemClock):
    """A clock that makes a call while the session waits, and lets it wait for ever."""

    def __init__(self):
        super().__init__()
        self.call = None

    async def sleep(self, _seconds):
        """Starts the call."""
        self.call = asyncio.ensure_future(self.call)
        await asyncio.sleep(0)


class Answered:
    """A driver's future that has its answer; None is no answer."""

    def __init__(self, answer):
        self._answer = answer

    def add_callbacks(self, callback, errback):
        """Calls back at once."""
        if isinstance(self._answer, Exception):
            errback(self._answer)
        elif self._answer is not None:
            callback([(self._answer,)])


class Told:
    """A driver's session that answers requests, which are numbers, from a list for each."""

    def __init__(self, answers):
        self._answers = [list(each) for each in answers]
        self.asked = []

    def execute_async(self, number):
        """Answers with the next of the list; the last one stays."""
        self.asked.append(number)
        answers = self._answers[number]
        return Answered(answers.pop(0) if len(answers) > 1 else answers[0])


async def session_on(*answers, clock=None, **settings):
    """A session with a cluster that answers so, and the list of requests that the cluster gets."""
    told = Told(answers)
    cql = Cql(
        CqlSettings(contact_points=("127.0.0.1",), port=1, datacenter="datacenter1", keyspace="k", **settings),
        clock or Hasty(),
        connect=lambda _settings: Connected(told, None, "Cassandra"),
    )
    await cql.start()
    return cql, told.asked


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT])
async def test_a_conditional_write_in_doubt_is_repeated_and_never_reported_as_not_done(failure):
    """A write that fails when Paxos may have decided it is repeated three times, and is unknown in the end. So is a
    call with several writes, but one that was never sent is not repeated.
    """
    cql, asked = await session_on([failure])
    with pytest.raises(OutcomeUnknown) as unknown:
        await cql.decide([0])
    assert unknown.value.__cause__ is failure
    assert asked == [0] * 4
    cql, asked = await session_on([NOBODY], [failure])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0, 1])
    assert asked == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT])
async def test_a_doubt_stays_when_what_is_asked_again_is_not_executed(failure):
    """If the cluster cannot be reached after the first attempt, that attempt is still in doubt."""
    cql, asked = await session_on([failure, NOBODY])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0])
    assert asked == [0] * 4


@pytest.mark.parametrize("failure", [NOBODY, NO_TABLE])
async def test_a_conditional_write_that_was_never_executed_is_unavailable(failure):
    """If no write of a call reached a replica, the call is unavailable, and nothing is repeated."""
    cql, asked = await session_on([failure], [failure])
    with pytest.raises(Unavailable):
        await cql.decide([0, 1])
    assert asked == [0, 1]
    cql, _ = await session_on([failure], [True])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0, 1])


async def test_an_answer_after_a_doubt_is_marked_so():
    """A write that was repeated until it was answered has that answer, and is marked as doubted."""
    cql, asked = await session_on([True], [False], [LATE, False], [TOO_FEW, SILENT, CUT, True])
    assert await cql.decide_each([0, 1, 2, 3]) == [
        Decided(applied=True),
        Decided(applied=False),
        Decided(applied=False, doubted=True),
        Decided(applied=True, doubted=True),
    ]
    assert asked == [0, 1, 2, 3, 2, 3, 3, 3]
    cql, _ = await session_on([True], [LATE, False])
    assert await cql.decide([0, 1]) == [True, False]


async def test_a_full_queue_leaves_a_doubt():
    """A write in doubt that cannot be repeated, since all places are taken meanwhile, is unknown; a write that cannot
    be sent at all is unavailable.
    """
    clock = Filling()
    cql, asked = await session_on([LATE, True], [None], clock=clock, waiting_max=1)
    clock.call = cql.read([1])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0])
    with pytest.raises(Unavailable, match="waiting"):
        await cql.decide([0])
    assert asked == [0, 1]
    clock.call.cancel()


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT, NOBODY, NO_TABLE])
async def test_a_read_that_fails_did_nothing(failure):
    """A failed read is unavailable, whatever the failure, and is not repeated."""
    cql, asked = await session_on([failure])
    with pytest.raises(Unavailable):
        await cql.read([0])
    assert asked == [0]


@pytest.mark.parametrize(("version", "release"), [("5.0.9", (5, 0)), ("5.0-rc1", (5, 0)), ("4.1-SNAPSHOT", (4, 1))])
def test_a_release_that_is_not_final_has_a_number(version, release):
    """The release number is read from versions of candidates and snapshots too."""
    assert release_of(version) == release
