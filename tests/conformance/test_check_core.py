"""The conformance kit: a core that keeps every promise passes, and a broken promise is reported."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from internal_transfer.adapters.in_process.event_bus import MemoryEventBus
from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.trading_core import CoreMode, ReferenceCore
from internal_transfer.adapters.system.clock import SystemClock
from internal_transfer.conformance.bench import Plan
from internal_transfer.conformance.check import check_core
from internal_transfer.conformance.promises import PROMISES
from internal_transfer.conformance.report import Finding, Report
from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.trading_core import CoreBalance

SPOT = Account(Owner("check-a"), "spot", "USDT")
PLAN = Plan(
    core="main", account=SPOT, other=Account(Owner("check-b"), "spot", "USDT"), other_asset="BTC", answer_seconds=0.1
)
EVERYTHING = [promise.name for promise in PROMISES]


class _Over:
    """A core in front of the reference core, so that a subclass states only what is wrong with it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.inner = ReferenceCore(database)
        self.told: dict[tuple[TransferId, Side, Action], int] = {}
        self.hidden = 2**62

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        return [await self.one(command) for command in commands]

    async def one(self, command: Command) -> Verdict | None:
        (verdict,) = await self.inner.tell([command])
        return verdict

    async def again(self, command: Command) -> bool:
        """Whether this command was told before."""
        key = command.transfer_id, command.side, command.action
        self.told[key] = self.told.get(key, 0) + 1
        return self.told[key] > 1

    async def known(self, command: Command) -> list[Verdict]:
        """What was said about the command's leg."""
        (given,) = await self.inner.verdicts([command.transfer_id])
        return [verdict for verdict in given if verdict.side is command.side]

    async def move(self, command: Command, amount: int | None = None) -> None:
        """Moves a balance under an id that the check does not know."""
        self.hidden += 1
        hidden = TransferId(self.hidden)
        told = replace(
            command,
            transfer_id=hidden,
            action=Action.APPLY,
            side=Side.TARGET,
            amount=amount or command.amount,
            debit=None,
            credit=command.credit or command.debit,
        )
        await self.inner.tell([told])

    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        return await self.inner.verdicts(transfer_ids)

    async def balances(self, owner: Owner) -> list[CoreBalance]:
        return await self.inner.balances(owner)

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        return await self.inner.entries_after(entry, most)


class EchoesAnotherAmount(_Over):
    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        return verdict and replace(verdict, amount=verdict.amount + 1)


class AnswersOnlyOnce(_Over):
    async def one(self, command: Command) -> Verdict | None:
        again = await self.again(command)
        verdict = await super().one(command)
        return None if again else verdict


class MovesAgainWhenToldAgain(_Over):
    async def one(self, command: Command) -> Verdict | None:
        again = await self.again(command)
        verdict = await super().one(command)
        if again and command.action is Action.APPLY and verdict and verdict.outcome is Outcome.APPLIED:
            await self.move(command)
        return verdict


class LooksBeforeItLeaps(_Over):
    """Checks whether a command is new, does something else, and then carries it out: a race."""

    async def one(self, command: Command) -> Verdict | None:
        is_new = not await self.known(command)
        await asyncio.sleep(0)
        verdict = await super().one(command)
        if is_new and await self.again(command) and verdict and verdict.outcome is Outcome.APPLIED:
            await self.move(command)
        return verdict


class DecidesAnew(_Over):
    """Says of a refused command that it was applied when it is told again."""

    async def one(self, command: Command) -> Verdict | None:
        again = await self.again(command)
        verdict = await super().one(command)
        if again and verdict and verdict.outcome is Outcome.REFUSED and command.action is Action.APPLY:
            return replace(verdict, outcome=Outcome.APPLIED, reason="")
        return verdict


class LeavesNoTombstone(_Over):
    """Answers a cancel or reversal of an unseen id, and forgets it."""

    async def one(self, command: Command) -> Verdict | None:
        if command.action is not Action.APPLY and not await self.known(command):
            outcome = Outcome.CANCELLED if command.action is Action.CANCEL else Outcome.REVERSED
            return _verdict(command, outcome)
        return await super().one(command)


class CancelsWhatWasApplied(_Over):
    """Takes a cancel for a reversal."""

    async def one(self, command: Command) -> Verdict | None:
        if command.action is Action.CANCEL and any(v.outcome is Outcome.APPLIED for v in await self.known(command)):
            await super().one(replace(command, action=Action.REVERSE))
            return _verdict(command, Outcome.CANCELLED)
        return await super().one(command)


class CarriesBatchesOutBackwards(_Over):
    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        return [await self.one(command) for command in reversed(commands)][::-1]


class RefusesWithoutReason(_Over):
    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        return verdict and replace(verdict, reason="")


class RefusesButMoves(_Over):
    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        if verdict and verdict.outcome is Outcome.REFUSED and command.action is Action.APPLY:
            await self.move(command, 1)
        return verdict


class TakesOtherContentsForTheSame(_Over):
    """Compares only the id and the leg, and repeats the verdict as if it were about these contents."""

    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        if verdict and verdict.outcome is Outcome.MISMATCH:
            return replace(verdict, outcome=Outcome.APPLIED, reason="")
        return verdict


class MovesOnMismatch(_Over):
    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        if verdict and verdict.outcome is Outcome.MISMATCH and command.asset == SPOT.asset:
            await self.move(command)
        return verdict


class KnowsNoSides(_Over):
    """Takes the debit of a transfer for a repetition of its credit."""

    async def one(self, command: Command) -> Verdict | None:
        (given,) = await self.inner.verdicts([command.transfer_id])
        if any(v.side is Side.TARGET for v in given) and command.side is Side.SOURCE:
            return _verdict(command, Outcome.APPLIED)
        return await super().one(command)


class KeepsWhatWasSpent(_Over):
    """Refuses a reversal that would make the balance negative."""

    async def one(self, command: Command) -> Verdict | None:
        if command.action is Action.REVERSE and command.credit is not None:
            (given,) = await self.inner.verdicts([command.transfer_id])
            balances = {balance.account: balance.posted for balance in await self.balances(command.credit.owner)}
            if given and given[0].outcome is Outcome.APPLIED and balances.get(command.credit, 0) < command.amount:
                return replace(_verdict(command, Outcome.REFUSED), reason="spent")
        return await super().one(command)


class MovesOneSideOfTwo(_Over):
    """Debits and credits in one act, but credits nothing."""

    async def one(self, command: Command) -> Verdict | None:
        verdict = await super().one(command)
        if command.side is Side.BOTH and verdict and verdict.outcome is Outcome.APPLIED:
            (given,) = await self.inner.verdicts([command.transfer_id])
            if len(given) == 1:
                await self.move(replace(command, credit=command.debit))
        return verdict


class CountsIn63Bits(_Over):
    async def balances(self, owner: Owner) -> list[CoreBalance]:
        found = await super().balances(owner)
        return [CoreBalance(each.account, (each.posted + 2**63) % 2**64 - 2**63, each.held) for each in found]


class LooksUpBackwards(_Over):
    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        return [given[::-1] for given in await super().verdicts(transfer_ids)]


class LookingLeavesTombstones(_Over):
    async def verdicts(self, transfer_ids: Sequence[TransferId]) -> list[list[Verdict]]:
        found = await super().verdicts(transfer_ids)
        for transfer_id, given in zip(transfer_ids, found, strict=True):
            if not given:
                await self.inner.tell(
                    [Command(transfer_id, "main", Side.TARGET, Action.CANCEL, "USDT", 100, None, SPOT)]
                )
        return found


class ShowsOthersBalances(_Over):
    async def balances(self, owner: Owner) -> list[CoreBalance]:
        others = PLAN.other.owner if owner == SPOT.owner else SPOT.owner
        return [*await super().balances(owner), *await super().balances(others)]


class OwnsOneBalanceForAll(_Over):
    async def balances(self, owner: Owner) -> list[CoreBalance]:
        both = [balance for each in (PLAN.account, PLAN.other) for balance in await self.inner.balances(each.owner)]
        total = sum(balance.posted for balance in both if balance.account.asset == SPOT.asset)
        return [CoreBalance(Account(owner, "spot", "USDT"), total, 0)]


class EntersEveryVerdict(_Over):
    """Lists refusals too, though they moved nothing."""

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        with self.database.call() as connection:
            rows = connection.execute(
                "SELECT number, transfer_id FROM core_verdict WHERE number > ? ORDER BY number LIMIT ?", (entry, most)
            ).fetchall()
        return [(number, (await self.verdicts([TransferId(named)]))[0][0]) for number, named in rows]


class PagesEntriesFromTheLastSeen(_Over):
    """Begins a page with the entry after which it was asked for."""

    async def entries_after(self, entry: int, most: int) -> list[tuple[int, Verdict]]:
        if not await super().entries_after(entry, 1):
            return []
        return await super().entries_after(max(entry - 1, 0), most)


def _verdict(command: Command, outcome: Outcome) -> Verdict:
    return Verdict(
        command.transfer_id,
        command.side,
        command.action,
        outcome,
        "",
        command.asset,
        command.amount,
        command.debit,
        command.credit,
    )


@pytest.fixture
def clock() -> SystemClock:
    clock = SystemClock()
    clock.lease(1, clock.monotonic() + 3600)
    return clock


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "core.db")
    yield database
    database.close()


def findings(report: Report) -> dict[str, Finding]:
    return {result.promise: result.finding for result in report.results}


async def test_the_reference_core_keeps_every_promise(database, clock):
    """The core that we ship passes every check; only the restart is left out."""
    report = await check_core(ReferenceCore(database), plan=PLAN, clock=clock)
    assert [(result.promise, result.message) for result in report.results if result.finding is not Finding.KEPT] == [
        ("restart", "nobody was there to restart the core")
    ]
    assert report.passed
    assert [*findings(report)] == ["reachable", *EVERYTHING, "restart", "clean"]


async def test_a_core_in_use_gets_its_balances_back(database, clock):
    """Accounts that hold money, and entries of others, do not disturb the check; their balances are the same
    afterwards.
    """
    core = ReferenceCore(database)
    funds = [Command(TransferId(n), "main", Side.TARGET, Action.APPLY, "USDT", 7, None, SPOT) for n in range(1, 40)]
    await core.tell(funds)
    report = await check_core(core, plan=PLAN, clock=clock)
    assert report.passed
    assert [(each.account, each.posted) for each in await core.balances(SPOT.owner)] == [(SPOT, 273)]


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        (EchoesAnotherAmount, "answers"),
        (AnswersOnlyOnce, "always_answers"),
        (MovesAgainWhenToldAgain, "one_effect"),
        (LooksBeforeItLeaps, "one_effect"),
        (DecidesAnew, "first_verdict"),
        (LeavesNoTombstone, "tombstones"),
        (CancelsWhatWasApplied, "cancel_and_reverse"),
        (CarriesBatchesOutBackwards, "order_of_a_leg"),
        (RefusesWithoutReason, "refusal"),
        (RefusesButMoves, "refusal"),
        (TakesOtherContentsForTheSame, "mismatch"),
        (MovesOnMismatch, "mismatch"),
        (KnowsNoSides, "sides"),
        (KeepsWhatWasSpent, "reversal"),
        (MovesOneSideOfTwo, "both_sides"),
        (CountsIn63Bits, "largest"),
        (LooksUpBackwards, "lookup"),
        (LookingLeavesTombstones, "lookup"),
        (ShowsOthersBalances, "balances"),
        (OwnsOneBalanceForAll, "balances"),
        (EntersEveryVerdict, "entries"),
        (PagesEntriesFromTheLastSeen, "entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_a_wrong_core_is_caught(database, clock, wrong, promise):
    """A core that breaks only this promise is reported for it, with a message."""
    report = await check_core(wrong(database), plan=PLAN, clock=clock)
    assert not report.passed
    assert findings(report).get(promise, findings(report)["reachable"]) is Finding.BROKEN or (
        wrong is AnswersOnlyOnce and findings(report)[promise] is Finding.UNANSWERED
    ), report
    assert all(result.message for result in report.results if result.finding is not Finding.KEPT)


@pytest.mark.parametrize(
    ("forgets", "finding"),
    [
        (None, Finding.KEPT),
        ("DELETE FROM core_verdict WHERE action = 'cancel'", Finding.BROKEN),
        ("DELETE FROM core_verdict", Finding.BROKEN),
        ("UPDATE core_balance SET posted = '5' WHERE owner = 'check-a'", Finding.KEPT),
        ("UPDATE core_verdict SET outcome = 'refused' WHERE outcome = 'applied'", Finding.BROKEN),
        ("UPDATE core_verdict SET moved = 0", Finding.BROKEN),
    ],
    ids=["nothing", "tombstones", "verdicts", "balances", "outcomes", "entries"],
)
async def test_a_core_is_restarted(tmp_path, clock, forgets, finding):
    """After a restart everything is asked again, and what the core has forgotten is found."""
    databases = [Database(tmp_path / "core.db")]
    behind = _Replaceable(ReferenceCore(databases[0]))

    async def restart() -> bool:
        await databases[-1].durable()
        databases[-1].close()
        databases.append(Database(tmp_path / "core.db"))
        if forgets is not None:
            databases[-1].connection.execute(forgets)
        behind.core = ReferenceCore(databases[-1])
        return True

    report = await check_core(behind, plan=PLAN, clock=clock, restarted=restart)
    databases[-1].close()
    assert findings(report)["restart"] is finding
    assert report.passed is (forgets is None)


class _Replaceable:
    """The core that runs now."""

    def __init__(self, core: ReferenceCore) -> None:
        self.core = core

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        return getattr(self.core, name)


async def test_a_restart_that_did_not_happen_is_left_out(database, clock):
    """Where nobody confirms the restart, the report says that this part is missing, and passes on the rest."""

    async def not_now() -> bool:
        return False

    report = await check_core(ReferenceCore(database), plan=PLAN, clock=clock, restarted=not_now)
    assert findings(report)["restart"] is Finding.LEFT_OUT
    assert report.passed


class _OverTheBus(_Over):
    """Answers nothing at once; every verdict comes over the bus, twice."""

    def __init__(self, database: Database, bus: MemoryEventBus) -> None:
        super().__init__(database)
        self.bus = bus
        self.lost = 0

    async def tell(self, commands: Sequence[Command]) -> list[Verdict | None]:
        given = [verdict for verdict in await super().tell(commands) if verdict is not None]
        self.lost += 1
        if self.lost % 7:
            await self.bus.publish([*given, *given])
        return [None] * len(commands)


async def test_answers_over_the_bus(database, clock):
    """A core that answers over a bus, sometimes twice and sometimes not at all, passes: lost answers are asked for
    again.
    """
    bus = MemoryEventBus()
    report = await check_core(_OverTheBus(database, bus), plan=PLAN, clock=clock, bus=bus)
    assert report.passed, report
    assert findings(report)["mismatch"] is Finding.KEPT


async def test_a_core_that_is_away(database, clock):
    """A core that cannot be reached gives a report that says so, and nothing is told to it."""
    core = ReferenceCore(database, mode=CoreMode.PAUSED)
    report = await check_core(core, plan=PLAN, clock=clock)
    assert findings(report) == {"reachable": Finding.UNANSWERED}
    assert "paused" in report.results[0].message


async def test_a_silent_core_is_unanswered(database, clock):
    """A core that never answers commands does not pass, although no broken promise is seen."""
    core = ReferenceCore(database, mode=CoreMode.WITHHOLD)
    report = await asyncio.wait_for(check_core(core, plan=PLAN, clock=clock), 60)
    assert findings(report)["answers"] is Finding.UNANSWERED
    assert not report.passed


async def test_what_a_core_cannot_do_is_left_out(database, clock):
    """A core that moves one side at a time is not asked to move both."""
    report = await check_core(ReferenceCore(database), plan=replace(PLAN, both=False), clock=clock)
    assert report.passed
    assert report.found(Finding.LEFT_OUT) == ("both_sides", "restart")
