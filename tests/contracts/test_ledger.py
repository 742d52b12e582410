"""Our own ledgers keep the contract of `ports/ledger.py`; and what is the embedded ledger's own."""

from itertools import pairwise

import pytest

from contracts.ledgers import EmbeddedLedgerHarness, SocketLedgerHarness, TigerBeetleHarness
from internal_transfer.conformance.ledger.contract import LedgerExamples
from internal_transfer.conformance.ledger.world import ALICE, BANK, BOB, UNKNOWN, World
from internal_transfer.ports.errors import Unavailable
from real_servers import need


@pytest.fixture(
    params=[
        "embedded, one commit per turn",
        "embedded, one commit per call",
        "embedded, small memory",
        "tigerbeetle",
        "embedded, behind a socket",
    ]
)
def new_harness(request, tmp_path):
    match request.param:
        case "tigerbeetle":
            place = need("tigerbeetle")
            return lambda: TigerBeetleHarness(place.address, place.cluster)
        case "embedded, behind a socket":
            return lambda: SocketLedgerHarness(tmp_path / "data")
    each_call = request.param == "embedded, one commit per call"
    remembered = 0 if request.param == "embedded, small memory" else None
    return lambda: EmbeddedLedgerHarness(tmp_path / "ledger.db", each_call=each_call, remembered=remembered)


class TestLedger(LedgerExamples):
    """Every rule, on every ledger."""


async def test_timestamps_rise_over_restarts_and_when_the_clock_steps_back(tmp_path):
    """The ledger counts on from the last timestamp it gave, even to a failed event, whatever the wall clock says."""
    harness = EmbeddedLedgerHarness(tmp_path / "ledger.db", each_call=False)
    await harness.open()
    world = World(harness)
    await world.open_accounts(BANK, ALICE)
    seen = []
    for number, step_ms in enumerate((0, 5_000, -3_600_000, 0, 7_200_000), start=1):
        harness.clock.ms += step_ms
        outcomes = await world.ledger.create_transfers(
            [world.plain(number, BANK, ALICE, 1), world.plain(50, BANK, BANK, 1)]
        )
        seen += [outcome.timestamp for outcome in outcomes]
        await harness.reopen()
    assert all(earlier < later for earlier, later in pairwise(seen))
    assert seen[-2] == harness.clock.ms * 1_000_000
    await harness.close()


async def test_a_turn_that_is_taken_back_leaves_nothing(tmp_path):
    """Accounts, balances, holds and burnt ids of a failed turn are gone, in memory and on disk; earlier ones stay."""
    harness = EmbeddedLedgerHarness(tmp_path / "ledger.db", each_call=False)
    await harness.open()
    world = World(harness)
    await world.fund(ALICE, 100)
    await world.succeed(world.hold(1, ALICE, BANK, 10))
    await harness.durable()
    before = await world.balances(ALICE)
    await harness.durable()

    await world.open_accounts(BOB)
    await world.succeed(world.hold(2, ALICE, BOB, 10), world.post(3, 1, 10))
    assert await world.create(world.plain(4, UNKNOWN, BOB, 1)) == ["debit_account_not_found"]
    with pytest.raises(ZeroDivisionError), harness.database.call():
        _ = 1 // 0
    with pytest.raises(Unavailable, match="took a turn back"):
        await harness.durable()

    for _ in range(2):
        assert await world.balances(ALICE) == before
        assert await world.ledger.lookup_accounts([BOB]) == []
        assert [transfer.id for transfer in await world.history()] == [9_000 + ALICE, 1]
        await harness.reopen()
    await world.succeed(world.plain(4, BANK, ALICE, 1), world.void(5, 1), world.hold(2, ALICE, BANK, 1))
    await harness.close()
