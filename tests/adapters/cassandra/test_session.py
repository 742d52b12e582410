"""What the CQL session says of conditional writes that fail: what is asked again, and what is certain in the end.

The driver's session is replaced by a list of answers, since no cluster fails in every way on demand.
"""

import asyncio

import pytest
from cassandra import ConsistencyLevel, InvalidRequest, OperationTimedOut, WriteTimeout, WriteType
from cassandra import Unavailable as NotEnoughReplicas
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown

from internal_transfer.adapters.cassandra.session import Cql, Decided, release_of
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
        """Goes on at once."""


class Filling(SystemClock):
    """A clock on which, as soon as somebody waits, as many requests are under way as may be."""

    def __init__(self, cql):
        super().__init__()
        self._cql = cql

    async def sleep(self, _seconds):
        """Fills the session."""
        self._cql._waiting = self._cql.settings.waiting_max


class Answered:
    """A driver's future that has its answer."""

    def __init__(self, answer):
        self._answer = answer

    def add_callbacks(self, callback, errback):
        """Calls back at once."""
        if isinstance(self._answer, Exception):
            errback(self._answer)
        else:
            callback([(self._answer,)])


class Told:
    """A driver's session that answers requests, which are numbers, from the list of each."""

    def __init__(self, answers):
        self._answers = [list(each) for each in answers]
        self.asked = []

    def execute_async(self, number):
        """Answers with the next of the list; the last one stays."""
        self.asked.append(number)
        answers = self._answers[number]
        return Answered(answers.pop(0) if len(answers) > 1 else answers[0])


def session_on(*answers):
    """A session before a cluster that answers so, and what it was asked."""
    settings = CqlSettings(contact_points=("127.0.0.1",), port=1, datacenter="datacenter1", keyspace="k")
    cql = Cql(settings, Hasty())
    cql._loop = asyncio.get_running_loop()
    cql._session = Told(answers)
    return cql, cql._session.asked


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT])
async def test_a_conditional_write_in_doubt_is_asked_again_and_never_told_as_not_done(failure):
    """Whatever fails after Paxos may have decided is asked again three times, and is unknown in the end; so is a whole
    batch of which one was not sent at all, and that one is not asked again.
    """
    cql, asked = session_on([failure])
    with pytest.raises(OutcomeUnknown) as unknown:
        await cql.decide([0])
    assert unknown.value.__cause__ is failure
    assert asked == [0] * 4
    cql, asked = session_on([NOBODY], [failure])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0, 1])
    assert asked == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT])
async def test_a_doubt_stays_when_what_is_asked_again_is_not_executed(failure):
    """When the cluster cannot be reached any more after the first time, that time is still in doubt."""
    cql, asked = session_on([failure, NOBODY])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0])
    assert asked == [0] * 4


@pytest.mark.parametrize("failure", [NOBODY, NO_TABLE])
async def test_a_conditional_write_that_was_never_executed_is_unavailable(failure):
    """Where no replica was asked by any of them nothing was done, which is told without asking again."""
    cql, asked = session_on([failure], [failure])
    with pytest.raises(Unavailable):
        await cql.decide([0, 1])
    assert asked == [0, 1]
    cql, _ = session_on([failure], [True])
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0, 1])


async def test_an_answer_after_a_doubt_is_marked_so():
    """What was asked again until it was answered ends with that answer, and with the mark that it was in doubt."""
    cql, asked = session_on([True], [False], [LATE, False], [TOO_FEW, SILENT, CUT, True])
    assert await cql.judge([0, 1, 2, 3]) == [
        Decided(applied=True),
        Decided(applied=False),
        Decided(applied=False, doubted=True),
        Decided(applied=True, doubted=True),
    ]
    assert asked == [0, 1, 2, 3, 2, 3, 3, 3]
    cql, _ = session_on([True], [LATE, False])
    assert await cql.decide([0, 1]) == [True, False]


async def test_too_many_that_wait_leave_a_doubt():
    """Where what is in doubt cannot be asked again, since all places are taken meanwhile, it is unknown; what cannot be
    asked at all is unavailable.
    """
    cql, asked = session_on([LATE, True])
    cql.clock = Filling(cql)
    with pytest.raises(OutcomeUnknown):
        await cql.decide([0])
    with pytest.raises(Unavailable):
        await cql.decide([0])
    assert asked == [0]


@pytest.mark.parametrize("failure", [LATE, TOO_FEW, SILENT, CUT, NOBODY, NO_TABLE])
async def test_a_read_that_fails_did_nothing(failure):
    """Reads are unavailable whatever fails, and are not asked again."""
    cql, asked = session_on([failure])
    with pytest.raises(Unavailable):
        await cql.read([0])
    assert asked == [0]


@pytest.mark.parametrize(("version", "release"), [("5.0.9", (5, 0)), ("5.0-rc1", (5, 0)), ("4.1-SNAPSHOT", (4, 1))])
def test_releases_that_are_not_final_have_a_number(version, release):
    """Whoever tries a release before it is out can start."""
    assert release_of(version) == release
