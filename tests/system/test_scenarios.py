"""The scenarios of `make demo`, each on server processes of its own; each ends with a clean reconciliation."""

import pytest

from internal_transfer.domain.refusal import CATALOGUE, Category, Code
from internal_transfer.simulation.failpoints import Failpoint
from internal_transfer.simulation.scenarios.catalogue import SCENARIOS, play_alone
from internal_transfer.simulation.scenarios.cores import (
    core_paused,
    core_refuses,
    core_withholds,
    open_transfers_shed,
    second_core_refuses,
    silent_core_sheds,
)
from internal_transfer.simulation.scenarios.crashes import WAYS, killed_under_load
from internal_transfer.simulation.scenarios.moving import (
    funding_to_spot,
    history_pages,
    insufficient_balance,
    racing_spends,
    replay_and_reuse,
    spot_to_funding,
)
from internal_transfer.simulation.scenarios.reconciling import planted_changes
from internal_transfer.simulation.scenarios.refusing import (
    WRONG,
    daily_limit,
    every_code,
    operators_policy,
    rate_limit,
    unknown_and_final,
)


async def test_funding_to_spot(play):
    """A transfer from funding to spot ends as SUCCESS with both balances moved and its timeline readable (G7, G9)."""
    await play(funding_to_spot)


async def test_spot_to_funding(play):
    """A transfer back from spot debits the core before the ledger is credited, and ends as SUCCESS (G7)."""
    await play(spot_to_funding)


async def test_insufficient_balance(play):
    """More than the ledger or the core holds is FAILED for good, and nothing moved (G3)."""
    await play(insufficient_balance)


async def test_every_code(play):
    """Each code that a request provokes by itself comes with its status, records nothing and leaves its key free."""
    await play(every_code)


async def test_operators_policy(play):
    """A freeze and a pause refuse requests, and the same requests succeed when they are taken back."""
    await play(operators_policy)


async def test_unknown_and_final(play):
    """Another user's transfer looks like none, and a final transfer cannot be decided again (G8)."""
    await play(unknown_and_final)


async def test_replay_and_reuse(play):
    """A key with the same content finds its transfer, also for twenty at once; other content has no effect (G6)."""
    await play(replay_and_reuse)


async def test_core_paused(play):
    """While the core is away a transfer is PENDING, and the scanner settles it when the core is back (G10)."""
    await play(core_paused)


async def test_core_refuses(play):
    """A core's refusal voids the hold and fails the transfer for good (G7)."""
    await play(core_refuses)


async def test_second_core_refuses(play):
    """What the first of two cores did is reversed before the hold is voided where the second refuses (G7)."""
    await play(second_core_refuses)


async def test_core_withholds(play):
    """A transfer whose core owes its answer is stuck until an operator voids it after the core's cancel (G4, G14)."""
    await play(core_withholds)


async def test_racing_spends(play):
    """Of 100 concurrent spends exactly as many succeed as the balance allows (G3)."""
    await play(racing_spends)


async def test_daily_limit(play):
    """The daily limit holds, and a failed transfer gives its share back (G13)."""
    await play(daily_limit)


async def test_history_pages(play):
    """A walk through the history meets every transfer once while more are accepted, and CSV lists the same."""
    await play(history_pages)


async def test_rate_limit(play):
    """Too many requests of one user are refused with a time to come back, and do not concern other users (G13)."""
    await play(rate_limit)


async def test_silent_core_sheds(play):
    """The routes of a core that owes answers for too long are shed before anything is recorded (G16)."""
    await play(silent_core_sheds)


async def test_open_transfers_shed(play):
    """When the most transfers are open, new ones are shed before anything is recorded (G16)."""
    await play(open_transfers_shed)


async def test_planted_changes(play):
    """Reconciliation names changes that were made by hand in the database, and is clean without them (G12)."""
    await play(planted_changes)


async def test_killed_under_load(play):
    """Killed at a random moment under load, it keeps all that it acknowledged, and a key is one transfer (G5, G9)."""
    await play(killed_under_load)


@pytest.mark.parametrize("failpoint", Failpoint)
async def test_killed_at(place, failpoint):
    """Killed at any step and started again, it ends the transfer once, and a retry finds it (G5, G9, G10)."""
    [scenario] = [each for each in SCENARIOS if each.name == f"killed {failpoint}"]
    await play_alone(scenario, place)


def test_every_failpoint_has_a_way():
    """No step of a transfer's life is left out of the crashes."""
    assert set(WAYS) == set(Failpoint)


def test_every_code_is_provoked():
    """Every code that does not tell of a system's failure is provoked by some scenario."""
    elsewhere = {
        Code.ACCOUNT_FROZEN,
        Code.ROUTE_PAUSED,
        Code.TRANSFER_NOT_FOUND,
        Code.INVALID_STATE_TRANSITION,
        Code.IDEMPOTENCY_KEY_REUSED,
        Code.INSUFFICIENT_BALANCE,
        Code.DAILY_LIMIT_EXCEEDED,
        Code.RATE_LIMITED,
        Code.CORE_REFUSED,
        Code.VOIDED_BY_OPERATOR,
        Code.EXPIRED,
        Code.SYSTEM_OVERLOADED,
        Code.CORE_UNAVAILABLE,
    }
    of_failures = {Code.LEDGER_UNAVAILABLE, Code.STORE_UNAVAILABLE, Code.TIMEOUT, Code.INTERNAL}
    assert {CATALOGUE[code].category for code in of_failures} == {Category.UNAVAILABLE, Category.INTERNAL}
    assert {wrong.code for wrong in WRONG} | elsewhere | of_failures == set(Code)
