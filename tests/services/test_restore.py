"""G5 to G9 after a restore: store, ledger and core are put back to different points in time, and repaired."""

from itertools import count

import pytest
from msgspec.structs import replace

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action
from internal_transfer.domain.transfer import Status, command_of
from internal_transfer.services.restore.mark import REPAIR, SUBJECT
from internal_transfer.simulation.failpoints import Crash
from services.desks import ACTOR
from services.restores import ApartStack, History, check_of, repaired

WRITES = {
    "accept",
    "append_audit",
    "create_accounts",
    "create_transfers",
    "pin",
    "record",
    "register",
    "save_report",
    "tell",
}
"""The calls that change something: a death between two reads is the same as one before the write that follows."""


@pytest.fixture
async def apart(tmp_path):
    """A service with three files and nothing in it."""
    stack = await ApartStack(tmp_path / "store.db").start()
    yield stack
    await stack.stop()


@pytest.fixture
async def history(apart):
    """Four rounds of transfers, with a backup of everything after each."""
    history = History(apart)
    for number in range(1, 5):
        await history.go_on()
        apart.copy(str(number))
    return history


async def refusal_of(stack):
    return await check_of(stack).disagreement()


async def test_systems_of_one_moment_agree(apart, history):
    """Nothing keeps a role from starting where nothing is amiss, and a repair finds nothing to do."""
    assert await refusal_of(apart) is None
    result = await repaired(apart)
    assert result.clean, result
    assert result.done == {}
    assert await refusal_of(apart) is None
    await history.check()


async def test_a_service_without_transfers_agrees(apart):
    """A new service has nothing to disagree about."""
    assert await refusal_of(apart) is None
    assert (await repaired(apart)).clean
    assert await refusal_of(apart) is None


@pytest.mark.parametrize("older", ["1", "3"])
async def test_an_older_ledger_is_filled_from_the_record(apart, history, older):
    """The ledger loses everything since a backup, and gets all of it back under the same ids."""
    used = await history.used()
    await apart.put_back(ledger=older)
    assert "the ledger is older than the store" in await refusal_of(apart)
    result = await repaired(apart)
    assert result.clean, result
    assert result.done["deposits_made_again"] == 2 * (4 - int(older))
    assert await refusal_of(apart) is None
    assert await history.used() == used
    await history.check()
    assert await refusal_of(apart) is None


@pytest.mark.parametrize("older", ["1", "3"])
async def test_an_older_store_is_rebuilt_from_the_ledger(apart, history, older):
    """Rows, events, keys and daily limits come back; only what never came to a hold is forgotten."""
    used = await history.used()
    await apart.put_back(store=older)
    assert "the store is older than the ledger" in await refusal_of(apart)
    result = await repaired(apart)
    assert result.ended, result
    assert await refusal_of(apart) is None
    assert await history.used() == used
    await history.check(forgotten=history.of("poor", int(older)))


@pytest.mark.parametrize("older", ["1", "3"])
async def test_an_older_core_is_told_again(apart, history, older):
    """A core gets back all that it had done, once, and nothing that it had refused."""
    await apart.put_back(core=older)
    assert "the trading core 'alpha' is older than the record" in await refusal_of(apart)
    result = await repaired(apart)
    assert result.clean, result
    assert await refusal_of(apart) is None
    await history.check()


@pytest.mark.parametrize(
    ("older", "said"),
    [
        ({"ledger": "1", "core": "2"}, "ledger is older"),
        ({"store": "1", "core": "2"}, "store is older"),
        ({"store": "3", "ledger": "1"}, "ledger is older"),
        ({"store": "1", "ledger": "3"}, "store is older"),
        ({"store": "1", "ledger": "3", "core": "2"}, "store is older"),
    ],
)
async def test_two_or_three_older_systems_meet_at_the_newest(apart, history, older, said):
    """What any of store and ledger still has is brought to all; what only the core has is put before a person."""
    await apart.put_back(**older)
    assert said in await refusal_of(apart)
    result = await repaired(apart, told=history.events())
    newest = max(int(older.get("store", "4")), int(older.get("ledger", "4")))
    lost = {problem.request_id for problem in result.problems}
    assert {problem.kind for problem in result.problems} <= {"core_entry_without_transfer"}
    told_later = {str(told.id) for told in history.told.values() if int(told.key.split("-")[1]) > newest}
    assert lost <= told_later
    assert result.ended is (newest == 4 or int(older.get("core", "4")) <= newest)
    if result.ended:
        assert await refusal_of(apart) is None
        if newest == 4:
            await history.check(forgotten=history.of("poor", int(older.get("store", "4"))))
    else:
        assert "has not ended well" in await refusal_of(apart)


@pytest.mark.usefixtures("history")
async def test_a_core_that_is_ahead_of_all_needs_a_person(apart):
    """Where store and ledger are of one moment and the core of a later one, no role starts until somebody says so."""
    await apart.put_back(store="2", ledger="2")
    assert "both older than the trading core" in await refusal_of(apart)
    result = await repaired(apart)
    assert not result.ended
    assert {problem.kind for problem in result.problems} == {"core_entry_without_transfer"}
    result = await repaired(apart, accept_unknown=True)
    assert (result.ended, result.clean, result.problems) == (True, False, ())
    assert await refusal_of(apart) is None
    assert not (await repaired(apart)).problems
    links = await apart.operations.audit_about("restore_accept_unknown", [result.accepted[0].request_id])
    assert [(link.entry.actor, link.entry.reason) for link in links] == [(ACTOR, "disk lost")]


async def test_what_a_core_took_back_is_nobodys(apart):
    """Entries of unknown transfers that were reversed, as a check of the core leaves them, refuse no start."""
    history = History(apart)
    await history.go_on()
    [known, *_] = await apart.store.by_status(Status.SUCCESS, after=None, most=100)
    unknown = replace(known, id=TransferId(known.id + 1))
    for action in (Action.APPLY, Action.REVERSE):
        await apart.core.tell([command_of(unknown, leg, action) for leg in unknown.legs])
    assert await refusal_of(apart) is None


@pytest.mark.slow
@pytest.mark.parametrize("older", [{"ledger": "1"}, {"store": "1"}, {"core": "1"}, {"store": "1", "core": "1"}])
async def test_a_repair_that_dies_anywhere_is_run_again(apart, older):
    """After a death at any write no role starts, and the next repair ends as an unbroken one does."""
    history = History(apart)
    for number in ("1", "2"):
        await history.go_on()
        apart.copy(number)
    forgotten = history.of("poor", int(older.get("store", "2")))
    for place in count():
        await apart.put_back(**({"store": "2", "ledger": "2", "core": "2"} | older))
        passed = count()
        apart.fuse = lambda _, __, method: method in WRITES and next(passed) == place  # noqa: B023 - used at once.
        try:
            result = await repaired(apart, told=history.events())
        except Crash:
            apart.fuse = lambda *_: False
            await apart.restart()
            begun = await apart.operations.audit_about(REPAIR, [SUBJECT])
            if begun:
                assert await refusal_of(apart) is not None or begun[-1].entry.outcome == "repaired"
            result = await repaired(apart, told=history.events())
            assert result.ended, result
            assert await refusal_of(apart) is None
            await history.check(forgotten=forgotten)
        else:
            break
    assert place > 10
