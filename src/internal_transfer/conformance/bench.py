"""The bench on which a trading core is checked: tells it commands, waits for the answers, reads its balances."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from internal_transfer.domain.account import Account
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX
from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Action, Command, Outcome, Side, Verdict
from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable
from internal_transfer.ports.event_bus import EventBus
from internal_transfer.ports.trading_core import TradingCore

TELLINGS = 5
"""How often a command is told while no answer comes: a transport may lose one, and telling again is asking."""

ENTRIES_PAGE = 500
ENTRY_MAX = 2**53
"""Entry numbers are below this, so that every language's JSON carries them."""


class Plan(Struct, frozen=True, kw_only=True):
    """What a check may use.

    `account` and `other` are two accounts of one asset in the core named `core`, of test users and with no other
    traffic while the check runs; `other` may be another owner's. `other_asset` is another asset that the core knows.
    `amount` is in smallest units; the check credits up to six times as much and takes all of it back.
    `amount_largest` is at most 2^112 - 1. `both` says that the core moves both sides of a transfer in one act.
    A command has to be answered within `answer_seconds`.
    """

    core: str
    account: Account
    other: Account
    other_asset: str
    amount: int = 100
    amount_largest: int = AMOUNT_UNITS_MAX
    both: bool = True
    answer_seconds: float = 10.0


class BrokenPromiseError(Exception):
    """The core broke a promise; the message says what it was told, what was due, and what came."""


class LeftOutError(Exception):
    """This promise is not checked; the message says why."""


class Bench:
    """One core under check, with the bus over which it answers (None where it answers at once)."""

    def __init__(self, core: TradingCore, bus: EventBus | None, clock: Clock, plan: Plan) -> None:
        assert plan.account != plan.other, "the two accounts have to be different"
        assert plan.account.asset == plan.other.asset != plan.other_asset, "the accounts share one asset"
        assert 0 < plan.amount * 6 <= plan.amount_largest <= AMOUNT_UNITS_MAX, "amounts out of range"
        self.core = core
        self.plan = plan
        self._bus = bus
        self._clock = clock
        self._heard: defaultdict[tuple[TransferId, Side, Action], list[Verdict]] = defaultdict(list)
        self._changed = asyncio.Event()
        self.first: dict[Command, Verdict] = {}
        """The first answer to each command, in the order in which the commands were told."""

    def new_id(self) -> TransferId:
        """An id that no transfer has."""
        return self._clock.new_ids(1)[0]

    def command(
        self,
        transfer_id: TransferId,
        action: Action = Action.APPLY,
        side: Side = Side.TARGET,
        *,
        amount: int | None = None,
        account: Account | None = None,
    ) -> Command:
        """A command about the plan's account; a leg on both sides debits it and credits the other account."""
        account = account or self.plan.account
        credit = self.plan.other if side is Side.BOTH else account
        return Command(
            transfer_id,
            self.plan.core,
            side,
            action,
            account.asset,
            self.plan.amount if amount is None else amount,
            None if side is Side.TARGET else account,
            None if side is Side.SOURCE else credit,
        )

    async def listen(self) -> None:
        """Takes the answers that come over the bus, until cancelled."""
        assert self._bus is not None, "without a bus there is nothing to listen to"
        while True:
            try:
                delivery = await self._bus.take(512)
                for verdict in delivery.verdicts:
                    self._hear(verdict)
                await self._bus.acknowledge(delivery)
            except OperatingFailureError:
                # The check that waits for an answer that was not heard says so.
                await self._clock.sleep(self.plan.answer_seconds / TELLINGS)

    def _hear(self, verdict: Verdict) -> None:
        self._heard[verdict.transfer_id, verdict.side, verdict.action].append(verdict)
        self._changed.set()
        self._changed = asyncio.Event()

    async def tell(self, *commands: Command) -> list[Verdict]:
        """Tells commands as one batch and returns their answers, in the order of the commands.

        An answer is one that came since the call began and echoes the command. Commands without one are told again.
        Raises `BrokenPromiseError` where an answer does not echo the command or differs from the first one, and
        `OutcomeUnknown` where none came.
        """
        known = [len(self._heard_about(command)) for command in commands]
        failure: Unavailable | OutcomeUnknown | None = None
        for _ in range(TELLINGS):
            # An unanswered command is told again with all that came after it, so that their order stays.
            try:
                answers = await self.core.tell(commands)
            except (Unavailable, OutcomeUnknown) as error:
                failure = error
                await self._clock.sleep(self.plan.answer_seconds / TELLINGS)
                continue
            for command, answer in zip(commands, answers, strict=True):
                if answer is not None:
                    if not _echoes(answer, command):
                        raise BrokenPromiseError(f"the answer does not echo the command: {_said(command, answer)}")
                    self._hear(answer)
            try:
                async with asyncio.timeout(self.plan.answer_seconds / TELLINGS):
                    verdicts = [
                        await self._answer(command, since) for command, since in zip(commands, known, strict=True)
                    ]
            except TimeoutError:
                continue
            for command, verdict in zip(commands, verdicts, strict=True):
                self._compare(command, verdict)
            return verdicts
        self._look_for_wrong_echoes(commands, known)
        raise OutcomeUnknown(
            System.CORE,
            f"no answer within {self.plan.answer_seconds:g} s, told {TELLINGS} times: {_about(commands[0])}"
            + ("" if failure is None else f" ({failure.message})"),
        )

    def _heard_about(self, command: Command) -> list[Verdict]:
        return self._heard[command.transfer_id, command.side, command.action]

    async def _answer(self, command: Command, since: int) -> Verdict:
        while True:
            changed = self._changed
            for verdict in self._heard_about(command)[since:]:
                if _echoes(verdict, command):
                    return verdict
            await changed.wait()

    def _look_for_wrong_echoes(self, commands: Sequence[Command], known: Sequence[int]) -> None:
        for command, since in zip(commands, known, strict=True):
            for verdict in self._heard_about(command)[since:]:
                if not _echoes(verdict, command):
                    raise BrokenPromiseError(f"the answer does not echo the command: {_said(command, verdict)}")

    def _compare(self, command: Command, verdict: Verdict) -> None:
        first = self.first.setdefault(command, verdict)
        if first.outcome is verdict.outcome is Outcome.MISMATCH:
            return  # A core stores nothing about a mismatch, so the reason may be worded differently.
        if (first.outcome, first.reason) != (verdict.outcome, verdict.reason):
            raise BrokenPromiseError(
                f"the first verdict is not repeated: {_about(command)} was {first.outcome} {first.reason!r} and "
                f"is now {verdict.outcome} {verdict.reason!r}"
            )

    async def expect(self, command: Command, outcome: Outcome) -> Verdict:
        """Tells one command and raises `BrokenPromiseError` where the outcome is another."""
        (verdict,) = await self.tell(command)
        if verdict.outcome is not outcome:
            raise BrokenPromiseError(f"due was {outcome}: {_said(command, verdict)}")
        return verdict

    async def posted(self, account: Account | None = None) -> int:
        """The balance of an account, 0 where the core does not list it."""
        account = account or self.plan.account
        balances = await self.core.balances(account.owner)
        foreign = [balance.account for balance in balances if balance.account.owner != account.owner]
        if foreign:
            raise BrokenPromiseError(f"the balances of {account.owner} list an account of {foreign[0].owner}")
        return sum(balance.posted for balance in balances if balance.account == account)

    async def expect_change(self, change: int, act: Callable[[], Awaitable[object]], *, of: Account) -> None:
        """Runs `act` and raises `BrokenPromiseError` where the balance did not change by this much."""
        before = await self.posted(of)
        await act()
        after = await self.posted(of)
        if after - before != change:
            raise BrokenPromiseError(f"the balance of {of.type} changed by {after - before}, due was {change}")

    async def last_entry(self) -> int:
        """The number of the newest entry, found by halving since a core in use may have very many."""
        low, high = 0, 1
        while await self.core.entries_after(high, 1):
            low, high = high, high * 2
            if high >= ENTRY_MAX:
                raise BrokenPromiseError(f"there are still entries above {low}")
        while high - low > 1:
            middle = (low + high) // 2
            if await self.core.entries_after(middle, 1):
                low = middle
            else:
                high = middle
        # There are entries above `low` and none above `high`, unless there are no entries at all.
        return high if await self.core.entries_after(low, 1) else low

    async def entries_since(self, entry: int) -> list[tuple[int, Verdict]]:
        """All entries above a number; raises `BrokenPromiseError` where the numbers do not rise."""
        entries: list[tuple[int, Verdict]] = []
        while page := await self.core.entries_after(entry, ENTRIES_PAGE):
            for number, verdict in page:
                if number <= entry:
                    raise BrokenPromiseError(f"the number {number} comes after {entry}")
                entry = number
                entries.append((number, verdict))
        return entries


def _echoes(verdict: Verdict, command: Command) -> bool:
    return _echoed(verdict) == _echoed(command)


def _echoed(of: Command | Verdict) -> tuple[object, ...]:
    return of.transfer_id, of.side, of.action, of.asset, of.amount, of.debit, of.credit


def _about(command: Command) -> str:
    return f"{command.action} of {command.amount} {command.asset} on {command.side} of {command.transfer_id}"


def _said(command: Command, verdict: Verdict) -> str:
    return f"{_about(command)} was answered by {verdict}"
