"""What every adapter of `ports/trading_core.py` promises."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from contracts.trading_cores import kafka_core
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.errors import Unavailable
from internal_transfer.ports.trading_core import TradingCore

APPLY, CANCEL, REVERSE = Action.APPLY, Action.CANCEL, Action.REVERSE
SOURCE, TARGET, BOTH = Side.SOURCE, Side.TARGET, Side.BOTH
ALICE = Owner("alice")
SPOT = Account(ALICE, "spot", "USDT")
MARGIN = Account(ALICE, "margin", "USDT")


@pytest.fixture(params=["turn", "each_call"])
async def database(request, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "core.db", each_call=request.param == "each_call")
    yield database
    database.close()


@pytest.fixture(params=["turn", "each_call", "kafka"])
async def core(request, tmp_path: Path) -> AsyncIterator[TradingCore]:
    if request.param == "kafka":
        async with kafka_core(tmp_path) as core:
            yield core
    else:
        database = Database(tmp_path / "core.db", each_call=request.param == "each_call")
        yield ReferenceCore(database)
        database.close()


def command_of(
    transfer: int,
    action: Action,
    side: Side = TARGET,
    *,
    amount: int = 100,
    debit: Account = SPOT,
    credit: Account = SPOT,
    core: str = "main",
) -> Command:
    return Command(
        TransferId(transfer),
        core,
        side,
        action,
        "USDT",
        amount,
        None if side is TARGET else debit,
        None if side is SOURCE else credit,
    )


async def posted(core: TradingCore, owner: Owner = ALICE) -> dict[str, int]:
    return {balance.account.type: balance.posted for balance in await core.balances(owner)}


async def outcomes(core: TradingCore, *commands: Command) -> list[Outcome | None]:
    return [None if verdict is None else verdict.outcome for verdict in await core.tell(commands)]


@pytest.mark.parametrize(
    ("seen", "told", "outcome", "balance"),
    [
        ([], APPLY, Outcome.APPLIED, 100),
        ([CANCEL], APPLY, Outcome.CANCELLED, None),
        ([REVERSE], APPLY, Outcome.CANCELLED, None),
        ([], CANCEL, Outcome.CANCELLED, None),
        ([REVERSE], CANCEL, Outcome.CANCELLED, None),
        ([APPLY], CANCEL, Outcome.APPLIED, 100),
        ([APPLY, REVERSE], CANCEL, Outcome.APPLIED, 0),
        ([APPLY], REVERSE, Outcome.REVERSED, 0),
        ([APPLY, CANCEL], REVERSE, Outcome.REVERSED, 0),
        ([], REVERSE, Outcome.REVERSED, None),
        ([CANCEL], REVERSE, Outcome.REVERSED, None),
        ([APPLY, REVERSE], APPLY, Outcome.APPLIED, 0),
        ([APPLY, REVERSE], REVERSE, Outcome.REVERSED, 0),
        ([CANCEL, APPLY], APPLY, Outcome.CANCELLED, None),
    ],
)
async def test_the_table_of_the_port(core, seen, told, outcome, balance):
    """Every line of the port's table holds for a leg that the core accepts, with its effect on the balance."""
    for action in seen:
        await core.tell([command_of(1, action)])
    assert await outcomes(core, command_of(1, told)) == [outcome]
    assert (await posted(core)).get("spot") == balance


@pytest.mark.parametrize(
    ("seen", "told", "outcome"),
    [
        ([], APPLY, Outcome.REFUSED),
        ([APPLY], CANCEL, Outcome.REFUSED),
        ([APPLY], REVERSE, Outcome.REVERSED),
    ],
)
async def test_the_table_for_a_refused_leg(core, seen, told, outcome):
    """A refusal for lack of money has a reason and no effect; its cancel and its reversal have no effect either."""
    for action in seen:
        await core.tell([command_of(1, action, SOURCE)])
    (verdict,) = await core.tell([command_of(1, told, SOURCE)])
    assert verdict is not None
    assert verdict.outcome is outcome
    assert verdict.reason == ("" if outcome is Outcome.REVERSED else "insufficient_balance")
    assert not any((await posted(core)).values())


async def test_first_verdict_is_repeated(core):
    """A command that was refused stays refused when it is told again after the money has come."""
    refused = await core.tell([command_of(1, APPLY, SOURCE)])
    await core.tell([command_of(2, APPLY, amount=500)])
    assert await core.tell([command_of(1, APPLY, SOURCE)]) == refused
    assert await posted(core) == {"spot": 500}


async def test_one_effect_however_often_told(core):
    """Telling a command many times, within a batch and after it, moves the balance once."""
    apply = command_of(1, APPLY)
    assert await outcomes(core, apply, apply, apply) == [Outcome.APPLIED] * 3
    assert await outcomes(core, apply) == [Outcome.APPLIED]
    assert await posted(core) == {"spot": 100}


async def test_orders_of_a_batch_see_those_before(core):
    """A debit is paid from a credit earlier in its batch, not from one later in it."""
    batch = [
        command_of(2, APPLY, SOURCE),
        command_of(3, APPLY),
        command_of(1, APPLY, SOURCE),
        command_of(4, APPLY, SOURCE),
    ]
    expected = [Outcome.REFUSED, Outcome.APPLIED, Outcome.APPLIED, Outcome.REFUSED]
    assert await outcomes(core, *batch) == expected
    assert await posted(core) == {"spot": 0}


@pytest.mark.parametrize(
    "other",
    [
        command_of(1, APPLY, amount=101),
        command_of(1, APPLY, credit=Account(Owner("bob"), "spot", "USDT")),
        command_of(1, APPLY, credit=MARGIN),
        command_of(1, APPLY, BOTH, debit=MARGIN),
        command_of(1, CANCEL, amount=101),
        command_of(1, REVERSE, amount=101),
        Command(TransferId(1), "main", TARGET, APPLY, "BTC", 100, None, Account(ALICE, "spot", "BTC")),
    ],
    ids=["amount", "owner", "type", "both sides", "cancel", "reverse", "asset"],
)
async def test_other_contents_are_a_mismatch(core, other):
    """The same id with other contents is a mismatch: no effect, nothing remembered, the first verdict stays."""
    first = await core.tell([command_of(1, APPLY)])
    assert await outcomes(core, other) == [Outcome.MISMATCH]
    assert await posted(core) == {"spot": 100}
    assert await core.verdicts([TransferId(1)]) == [first]


async def test_both_sides_move_together(core):
    """A leg on both sides debits and credits in one act, is refused as a whole, and is reversed as a whole."""
    await core.tell([command_of(1, APPLY, amount=150)])
    first, second = command_of(2, APPLY, BOTH, credit=MARGIN), command_of(3, APPLY, BOTH, credit=MARGIN)
    assert await outcomes(core, first, second) == [Outcome.APPLIED, Outcome.REFUSED]
    assert await posted(core) == {"spot": 50, "margin": 100}
    await core.tell([command_of(2, REVERSE, BOTH, credit=MARGIN)])
    assert await posted(core) == {"spot": 150, "margin": 0}


async def test_a_reversal_is_unconditional(core):
    """A credit that was spent is reversed all the same, and leaves a negative balance."""
    await core.tell([command_of(1, APPLY), command_of(2, APPLY, SOURCE, amount=60)])
    assert await outcomes(core, command_of(1, REVERSE)) == [Outcome.REVERSED]
    assert await posted(core) == {"spot": -60}


async def test_the_largest_amounts(core):
    """Sums of the largest amounts are exact, far beyond what 63 bits hold."""
    await core.tell([command_of(number, APPLY, amount=AMOUNT_UNITS_MAX) for number in range(1, 4)])
    await core.tell([command_of(4, APPLY, SOURCE, amount=1)])
    assert await posted(core) == {"spot": 3 * (2**112 - 1) - 1}
    (verdicts,) = await core.verdicts([TransferId(3)])
    assert verdicts[0].amount == 2**112 - 1


async def test_verdicts_echo_the_command(core):
    """A verdict repeats the command's fields, when it is given and when it is read again."""
    told = command_of(7, APPLY, amount=42)
    (verdict,) = await core.tell([told])
    expected = Verdict(TransferId(7), TARGET, APPLY, Outcome.APPLIED, "", "USDT", 42, None, SPOT)
    assert verdict == expected
    assert await core.verdicts([TransferId(7), TransferId(8)]) == [[expected], []]


async def test_verdicts_come_in_the_order_given(core):
    """A transfer's verdicts on both sides are all kept, and come in the order in which they were given."""
    commands = [
        command_of(1, REVERSE),
        command_of(1, CANCEL, SOURCE),
        command_of(1, APPLY),
        command_of(1, APPLY, SOURCE),
    ]
    given = [await core.tell([told]) for told in commands]
    assert await core.verdicts([TransferId(1)]) == [[verdict for (verdict,) in given]]


async def test_two_cores_know_nothing_of_each_other(core):
    """The same account name in two cores is two balances, and a command to one is unknown to the other."""
    await core.tell([command_of(1, APPLY), command_of(2, APPLY, core="other", amount=5)])
    assert await outcomes(core, command_of(3, APPLY, SOURCE, core="other")) == [Outcome.REFUSED]
    assert await outcomes(core, command_of(1, APPLY, core="other", amount=7)) == [Outcome.APPLIED]
    assert sorted(balance.posted for balance in await core.balances(ALICE)) == [12, 100]


async def test_balances_are_the_owners_own(core):
    """Only accounts that commands moved are listed, and only the owner's, with nothing held."""
    await core.tell(
        [command_of(1, APPLY), command_of(2, APPLY, SOURCE, debit=MARGIN), command_of(3, CANCEL, credit=MARGIN)]
    )
    (balance,) = await core.balances(ALICE)
    assert (balance.account, balance.posted, balance.held) == (SPOT, 100, 0)
    assert await core.balances(Owner("alic")) == []


async def test_entries_are_what_moved_balances(core):
    """Entries are the applied and the effective reversals, rising, page by page, and explain the balance."""
    await core.tell(
        [command_of(1, APPLY), command_of(2, APPLY, SOURCE, amount=500), command_of(3, REVERSE), command_of(4, APPLY)]
    )
    await core.tell([command_of(1, CANCEL), command_of(1, REVERSE)])
    entries = await core.entries_after(0, 10)
    assert [(v.transfer_id, v.outcome) for _, v in entries] == [
        (1, Outcome.APPLIED),
        (4, Outcome.APPLIED),
        (1, Outcome.REVERSED),
    ]
    numbers = [number for number, _ in entries]
    assert numbers == sorted(set(numbers))
    assert await core.entries_after(0, 2) == entries[:2]
    assert await core.entries_after(numbers[1], 2) == entries[2:]


# What follows is about the reference core itself.


async def test_paused(database):
    """A paused core answers nothing, neither commands nor questions, and goes on as before afterwards."""
    core = ReferenceCore(database)
    await core.tell([command_of(1, APPLY)])
    core.mode = CoreMode.PAUSED
    for asking in (
        core.tell([command_of(2, APPLY)]),
        core.verdicts([TransferId(1)]),
        core.balances(ALICE),
        core.entries_after(0, 10),
    ):
        with pytest.raises(Unavailable):
            await asking
    core.mode = CoreMode.NORMAL
    assert await outcomes(core, command_of(1, APPLY), command_of(2, APPLY)) == [Outcome.APPLIED] * 2
    assert await posted(core) == {"spot": 200}


async def test_refusing(database):
    """A refusing core refuses new commands for good, repeats old verdicts and still reverses."""
    core = ReferenceCore(database)
    await core.tell([command_of(1, APPLY)])
    core.mode = CoreMode.REFUSE
    old, new, undone = await core.tell([command_of(1, APPLY), command_of(2, APPLY), command_of(1, REVERSE)])
    assert old is not None
    assert old.outcome is Outcome.APPLIED
    assert new is not None
    assert (new.outcome, new.reason) == (Outcome.REFUSED, "refused_by_operator")
    assert undone is not None
    assert undone.outcome is Outcome.REVERSED
    core.mode = CoreMode.NORMAL
    assert await outcomes(core, command_of(2, APPLY)) == [Outcome.REFUSED]


async def test_refusing_credits(database):
    """A core that refuses credits still debits, and takes the debit back."""
    core = ReferenceCore(database)
    await core.tell([command_of(1, APPLY)])
    core.mode = CoreMode.REFUSE_CREDITS
    assert await outcomes(core, command_of(2, APPLY, SOURCE), command_of(2, APPLY, core="other")) == [
        Outcome.APPLIED,
        Outcome.REFUSED,
    ]
    assert await posted(core) == {"spot": 0}
    assert await outcomes(core, command_of(2, REVERSE, SOURCE)) == [Outcome.REVERSED]
    assert await posted(core) == {"spot": 100}


async def test_withholding(database):
    """A withholding core forgets applies but takes a cancel; told again, it applies what is not cancelled."""
    core = ReferenceCore(database, mode=CoreMode.WITHHOLD)
    assert await outcomes(core, command_of(1, APPLY), command_of(2, APPLY)) == [None, None]
    assert await core.verdicts([TransferId(1)]) == [[]]
    assert await outcomes(core, command_of(1, CANCEL)) == [Outcome.CANCELLED]
    core.mode = CoreMode.NORMAL
    assert await outcomes(core, command_of(1, APPLY), command_of(2, APPLY)) == [Outcome.CANCELLED, Outcome.APPLIED]
    assert await posted(core) == {"spot": 100}


async def test_a_restart_keeps_verdicts_and_balances(database):
    """A core that starts on the tables of another one goes on with its verdicts and balances."""
    await ReferenceCore(database).tell([command_of(5, APPLY), command_of(3, CANCEL)])
    await database.durable()
    core = ReferenceCore(database)
    assert await outcomes(core, command_of(5, APPLY), command_of(3, APPLY)) == [Outcome.APPLIED, Outcome.CANCELLED]
    assert await posted(core) == {"spot": 100}


async def test_a_turn_taken_back_leaves_nothing(tmp_path):
    """Commands of a turn that a failure rolls back are as if never told: no verdict, no balance in memory."""
    database = Database(tmp_path / "core.db")
    core = ReferenceCore(database)
    await core.tell([command_of(1, APPLY)])
    await database.durable()
    await core.tell([command_of(2, APPLY)])
    with pytest.raises(Unavailable), database.call() as connection:
        connection.execute("SELECT no_such_column")
    with pytest.raises(Unavailable):
        await database.durable()
    await asyncio.sleep(0)
    assert await posted(core) == {"spot": 100}
    assert await outcomes(core, command_of(2, APPLY)) == [Outcome.APPLIED]
    assert await posted(core) == {"spot": 200}
    database.close()


OWNERS = [Owner("ada"), Owner("bob"), Owner("cy")]
ORDERS = st.tuples(
    st.integers(1, 6), st.sampled_from([SOURCE, TARGET, TARGET, BOTH]), st.sampled_from([APPLY, APPLY, CANCEL, REVERSE])
)


class CoreMachine(RuleBasedStateMachine):
    """The reference core against a model that is a dictionary of outcomes and a dictionary of balances."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.open()
        self.outcomes: dict[tuple[int, Side, Action], Outcome] = {}
        self.amounts: dict[int, int] = {}
        self.balances = dict.fromkeys(OWNERS, 0)

    def open(self) -> None:
        """Starts a core on the tables as they are."""
        self.database = Database(Path(self.directory.name) / "core.db")
        self.core = ReferenceCore(self.database)

    def command(self, transfer: int, side: Side, action: Action, amount: int) -> Command:
        """A command whose accounts follow from the transfer."""
        debit, credit = (Account(OWNERS[(transfer + n) % 3], "spot", "USDT") for n in (0, 1))
        return command_of(transfer, action, side, amount=amount, debit=debit, credit=credit)

    def expected(self, transfer: int, side: Side, action: Action, amount: int) -> Outcome:
        """What the table of the port says, with its effect on the model."""
        sides = {seen for number, seen, _ in self.outcomes if number == transfer}
        if self.amounts.get(transfer, amount) != amount or (side is BOTH and sides - {BOTH}) or BOTH in sides - {side}:
            return Outcome.MISMATCH
        if (transfer, side, action) in self.outcomes:
            return self.outcomes[transfer, side, action]
        applied = self.outcomes.get((transfer, side, APPLY))
        tombstone = applied is None and bool({(transfer, side, CANCEL), (transfer, side, REVERSE)} & set(self.outcomes))
        debited = OWNERS[transfer % 3] if side is not TARGET else None
        credited = OWNERS[(transfer + 1) % 3] if side is not SOURCE else None
        change = 0
        if action is CANCEL:
            outcome = applied or Outcome.CANCELLED
        elif action is REVERSE:
            outcome = Outcome.REVERSED
            change = -amount if applied is Outcome.APPLIED else 0
        elif tombstone:
            outcome = Outcome.CANCELLED
        elif debited is not None and self.balances[debited] < amount:
            outcome = Outcome.REFUSED
        else:
            outcome, change = Outcome.APPLIED, amount
        if debited is not None:
            self.balances[debited] -= change
        if credited is not None:
            self.balances[credited] += change
        self.outcomes[transfer, side, action] = outcome
        self.amounts[transfer] = amount
        return outcome

    @rule(batch=st.lists(ORDERS, min_size=1, max_size=5), odd=st.booleans())
    def tell(self, batch: list[tuple[int, Side, Action]], odd: bool) -> None:  # noqa: FBT001 - as hypothesis calls it.
        """Tells a batch, perhaps with another amount first."""
        amounts = [10**30 * transfer + (odd and place == 0) for place, (transfer, *_) in enumerate(batch)]
        told = [self.command(*line, amount) for line, amount in zip(batch, amounts, strict=True)]
        got = self.loop.run_until_complete(outcomes(self.core, *told))
        assert got == [self.expected(*line, amount) for line, amount in zip(batch, amounts, strict=True)]

    @rule(batch=st.lists(ORDERS, min_size=1, max_size=5))
    def tell_in_a_turn_that_fails(self, batch: list[tuple[int, Side, Action]]) -> None:
        """Tells a batch in a turn that fails; the model does not change."""

        async def fail() -> None:
            await outcomes(self.core, *(self.command(*line, 10**30 * line[0]) for line in batch))
            with self.database.call() as connection:
                connection.execute("SELECT no_such_column")

        with pytest.raises(Unavailable):
            self.loop.run_until_complete(fail())

    @rule()
    def restart(self) -> None:
        """Starts again from the file."""
        self.database.close()
        self.open()

    @invariant()
    def balances_agree(self) -> None:
        """The core's balances are the model's."""
        for owner, expected in self.balances.items():
            assert sum(self.loop.run_until_complete(posted(self.core, owner)).values()) == expected

    @invariant()
    def entries_explain_the_balances(self) -> None:
        """The sum of the entries is the balances."""
        totals = dict.fromkeys(OWNERS, 0)
        for _, entry in self.loop.run_until_complete(self.core.entries_after(0, 1000)):
            amount = entry.amount if entry.outcome is Outcome.APPLIED else -entry.amount
            if entry.debit is not None:
                totals[entry.debit.owner] -= amount
            if entry.credit is not None:
                totals[entry.credit.owner] += amount
        assert totals == self.balances

    def teardown(self) -> None:
        """Removes the files."""
        self.database.close()
        self.loop.close()
        self.directory.cleanup()


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.__doc__ = """Whatever is told, in whatever order, the core answers and moves what the model says."""
TestCoreMachine.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
