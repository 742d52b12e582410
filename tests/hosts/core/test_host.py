"""The host of the reference core, without a transport."""

import apsw
import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side
from internal_transfer.hosts.core.host import EXPIRY_MARGIN_MS, CoreHost, Phase
from internal_transfer.ports.errors import Unavailable
from internal_transfer.wire.core_messages import (
    BalancesQuery,
    BalancesReply,
    EntriesQuery,
    EntriesReply,
    UnavailableReply,
    VerdictsQuery,
    VerdictsReply,
)

CLOCK = SystemClock()
SPOT = Account(Owner("alice"), "spot", "USDT")
LATER = CLOCK.now_ms() + 3_600_000


def command_of(transfer: int, action: Action = Action.APPLY) -> Command:
    return Command(TransferId(transfer), "main", Side.TARGET, action, "USDT", 100, None, SPOT)


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "core.db")
    yield database
    database.close()


@pytest.fixture
def host(database):
    host = CoreHost(database, clock=CLOCK)
    host.phase = Phase.RUNNING
    return host


async def test_verdicts_are_on_disk_before_they_are_told(host, database):
    """When `carry_out` returns, another connection reads the verdicts from the file."""
    await host.carry_out([command_of(1), command_of(2)])
    reader = database.open_reader()
    assert reader.execute("SELECT count(*) FROM core_verdict").get == 2
    reader.close()


async def test_a_memory_keeps_its_name(host, database, tmp_path):
    """A core's name belongs to its database: it is on disk when returned, stays over a restart, and differs
    elsewhere.
    """
    name = await host.name()
    assert await host.name() == name
    assert await CoreHost(database, clock=CLOCK).name() == name
    reader = database.open_reader()
    assert reader.execute("SELECT name FROM core_name").fetchall() == [(name,)]
    reader.close()
    other = Database(tmp_path / "other.db")
    assert await CoreHost(other, clock=CLOCK).name() != name
    other.close()


async def test_a_redelivered_order_gets_the_first_verdict(host):
    """A command that comes again gets the first verdict, and has one effect."""
    first = await host.carry_out([command_of(1)])
    assert await host.carry_out([command_of(1), command_of(1)]) == first * 2
    reply = await host.answer(BalancesQuery(correlation_id="q", expires_at=LATER, owner="alice"))
    assert isinstance(reply, BalancesReply)
    assert [balance.posted for balance in reply.balances] == ["100"]


async def test_answers(host):
    """Queries are answered under their names, with what the core has stored."""
    await host.carry_out([command_of(1), command_of(1, Action.REVERSE)])
    verdicts = await host.answer(VerdictsQuery(correlation_id="v", expires_at=LATER, transfer_ids=("1", "2")))
    assert isinstance(verdicts, VerdictsReply)
    assert verdicts.correlation_id == "v"
    assert [[each.outcome for each in given] for given in verdicts.verdicts] == [
        [Outcome.APPLIED, Outcome.REVERSED],
        [],
    ]
    entries = await host.answer(EntriesQuery(correlation_id="e", expires_at=LATER, after=0, most=10))
    assert isinstance(entries, EntriesReply)
    assert [entry.verdict.outcome for entry in entries.entries] == [Outcome.APPLIED, Outcome.REVERSED]


async def test_withheld_orders_have_no_verdict(host):
    """A withholding core returns no verdicts for the commands that it forgets."""
    host.core.mode = CoreMode.WITHHOLD
    verdicts = await host.carry_out([command_of(1), command_of(2, Action.CANCEL)])
    assert [(verdict.transfer_id, verdict.outcome) for verdict in verdicts] == [(2, Outcome.CANCELLED)]


async def test_a_paused_core_is_not_ready(host):
    """A paused core carries nothing out, replies that it cannot, says so in its state, and can be resumed."""
    host.core.mode = CoreMode.PAUSED
    with pytest.raises(Unavailable):
        await host.carry_out([command_of(1)])
    reply = await host.answer(BalancesQuery(correlation_id="q", expires_at=LATER, owner="alice"))
    assert reply == UnavailableReply(correlation_id="q", reason="the core is paused by the operator")
    assert not host.state().ready
    host.core.mode = CoreMode.NORMAL
    await host.carry_out([command_of(1)])
    assert host.state().ready
    assert host.state().commands == 1


async def test_nobody_waits_any_more(host):
    """A query that expired longer ago than clocks may differ is dropped; one that has just expired is answered."""
    old = BalancesQuery(correlation_id="q", expires_at=CLOCK.now_ms() - EXPIRY_MARGIN_MS - 1, owner="alice")
    assert await host.answer(old) is None
    late = BalancesQuery(correlation_id="q", expires_at=CLOCK.now_ms() - 1, owner="alice")
    assert await host.answer(late) is not None


async def test_a_database_that_fails(host, database):
    """While the database fails, no command is carried out and the state says why; afterwards the host works again."""
    database.connection.execute("ALTER TABLE core_verdict RENAME TO elsewhere")
    with pytest.raises(Unavailable) as failure:
        await host.carry_out([command_of(1)])
    assert isinstance(failure.value.__cause__, apsw.SQLError)
    assert "elsewhere" not in (host.state().reason or "")
    assert not host.state().ready
    database.connection.execute("ALTER TABLE elsewhere RENAME TO core_verdict")
    assert [verdict.outcome for verdict in await host.carry_out([command_of(1)])] == [Outcome.APPLIED]
    assert host.state().ready
